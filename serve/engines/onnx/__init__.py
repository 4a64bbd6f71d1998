"""The ONNX engine: continuous batching on CPU with plain ONNX Runtime, in a process of its own."""
