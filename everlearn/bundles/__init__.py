"""Bundles: immutable directories that their ecosystem's tools read. In reading order:

``bundle``: bundle.json, how it is written and read
``contents``: which files each format may hold
``reference``: ``name@version`` and ``name@alias``
``verification``: remembers that a bundle's bytes were verified
``inspection``: files of strangers, looked into in a child process; ``inspector`` is that child
``safetensors_header``: the tensors of a file, without reading them
``decoder_config``: what transformers makes of a decoder's configuration where the file alone misleads
``staging``: where a bundle is written before it is registered
``durable``: writes that survive a power cut
"""
