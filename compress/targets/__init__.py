"""The formats that a compressed model is written in.

- ``table``: the targets, what builds each, and how far each may drift from its parent.
- ``architectures``: which model can be made into which target, refused by name before any work.
- ``onnx_decoder``: the child that makes an ONNX decoder, with onnxruntime-genai's builder.
- ``quantized_graph``: its products with quantized matrices. ``attention_graph``: its attention.
- ``onnx_encoder``: the child that makes an ONNX encoder.
- ``vllm``: the child that makes a compressed-tensors checkpoint, with llmcompressor.
- ``gguf``: the child that writes a file for llama.cpp. ``gguf_vocabulary``: the tokenizer in it.
"""
