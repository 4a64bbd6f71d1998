"""The ONNX engine: continuous batching on CPU with plain ONNX Runtime, in a process of its own.

A request's path, file by file:

- ``__main__``: opens the bundle; ``server`` starts its backend and HTTP server
- ``http``: the routes, health, metrics, and what a request has used
- ``responder``: reads a request's body, writes its answer, and knows when the client has left
- ``generate``: the backend of text models; ``embed``: that of encoders
- ``reading``: the threads in which requests are parsed and tokenized
- ``requests``: a validated request to generations, by the tokenizer, template and grammar of :mod:`serve.engines`
- ``decoding``: the scheduler and what it runs
- ``answers``: what was generated, as OpenAI's bodies and events

Beside it: ``encoders`` (with dynamic batching), ``tokens`` (``/tokenize``, ``/detokenize``), ``used`` (the
usage of requests that broke off), ``session`` (a graph in onnxruntime), ``sizing`` (rows, threads and memory),
``priority`` (of threads), ``memory`` (what to do without any).
"""
