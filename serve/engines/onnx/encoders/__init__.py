"""Encoders in ONNX: ``model`` computes texts in shared batches, ``embed`` and ``heads`` answer with what comes of them.

``entities`` and ``extraction`` make entities of tokens' labels, and an answer of the places where it may start and end.
"""
