"""What a compressed model is written as: ONNX decoders and encoders, vLLM's format, GGUF."""
