"""Bringing models in, and the checks that each must pass. In reading order:

``sources``: a directory, a GGUF file, a hub or the catalogue becomes the next version of a name
``catalogue``: models known by a short name
``hub``: models from a Hugging Face hub
``weights``: the tensors are all there, of the right shapes, and finite; ``plain_decoders`` says which a decoder has
``model_check``: the child in which transformers makes the model; ``loaded`` is what its loader found missing
``vocabulary``: tokenizer, special ids and vocabulary agree
``gguf_reader``: a GGUF file becomes a Hugging Face directory, by way of
``gguf_validation``: its header, checked
``gguf_architectures``: configuration and tensors, both ways
``gguf_rope``: rotary positions
``gguf_tokenizer``: the tokenizer
"""
