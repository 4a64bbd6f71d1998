"""Smaller, faster versions of a model, each with the measure of what it lost.

What is asked for becomes a version in five steps:

1. request: ``cli`` reads the command line or a YAML file into a ``recipe``, checked against two tables,
   ``targets/table`` and ``quantize/methods``.
2. child: ``export``, ``plan`` or ``distill/run`` starts a process of its own for the heavy work, a module of
   ``targets``, ``prune`` or ``distill``, and hands it a JSON request.
3. measure: the result is compared with its parent on held-out text (``measure``).
4. gate: it is refused where its graph is not the parent's model (``measure/parity``), or where it drifted further than
   its target allows (``targets/table``).
5. register: a bundle with the parent's digest, the recipe and the metrics is added to the registry.

In reading order:

- ``cli``: the commands ``compress``, ``distill``, ``answers``, ``compare`` and ``gguf``.
- ``recipe``: what to make of a model; the plan of several steps.
- ``export``: one target, from the request to the registered version.
- ``export_gguf``: the same for a GGUF file, which is not registered.
- ``plan``: prune, heal and several targets, each found again after an interruption.
- ``search``: which of these fits a size or a speed.
- ``targets``, ``quantize``, ``prune``, ``distill``, ``measure``: the work itself.
- ``parent_files``: what is read and kept of a parent's directory.
- ``sentence_encoder``: an encoder in PyTorch, and how near two encoders' embeddings are.
"""
