"""vLLM's own server as an engine: what it is asked and what it answers are translated on the way.

A request's path, file by file:

- ``__main__``: replaces itself by ``server``, the program that vLLM's processes import first
- ``server``: vLLM's server on a unix socket, started with the flags of ``machine``
- ``front``: the middleware before its routes: refuses by name, translates, hands on
- ``requests``: a validated request in vLLM's spelling
- ``answers``: calls of tools told from text, as the ONNX engine tells them
- ``plain``: the answer with OpenAI's fields alone

Beside it: ``int4``, a plugin that unpacks weights on CPUs for which vLLM has no kernel.
"""
