"""The server of a device: one edge folder by OpenAI's HTTP, without a gateway before it.

:mod:`deploy.edge.native` starts it as ``python -m serve.edge --folder DIR --fd N --ready-fd N``, once it has checked the
files; ``N`` are a socket that listens already, and a pipe that is told when the model is loaded.

- ``__main__``: loads the folder, checks its probes, serves
- ``folder``: what serving needs of edge.json, and the check of the probes
- ``paths``: what may be asked
- ``door``: who may ask

What answers is :mod:`serve.engines.onnx`.
"""
