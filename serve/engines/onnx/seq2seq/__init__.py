"""Encoder-decoders in ONNX: ``model`` runs the graphs, ``scheduler`` many answers at once, ``backend`` is asked."""
