"""Fewer bits per weight: how values are rounded, and what is measured to round them well.

- ``methods``: the table of methods. Each is a module here: ``rtn``, ``gptq``, ``awq``, ``autoround``.
- ``calibration``: the tokens that they read.
- ``blocks``: a matrix in blocks of 32 with a scale each. ``matrices``: such matrices on disk.
- ``mapped``: a model whose weights stay in their file. ``capture``: the inputs of its layers.
- ``sensitivity``: which layers rounding hurts most, and so keep more bits.
- ``kv_scales``: scales for keys and values at 8 bits.
- ``smooth_encoder``: outliers of an encoder's inputs, divided out before it is rounded.
- ``quantize_aware``: training with rounded weights.
"""
