"""Engines: programs that each serve one version of a model, by OpenAI's HTTP on a unix socket.

The supervisor starts an engine as ``python -m MODULE --bundle DIR --model NAME --version N --uds PATH``. The engine

- answers ``GET /health`` with 200 once it can serve; its body's ``context`` is how many tokens a request may hold;
- answers the routes of its task: ``/v1/chat/completions``, ``/v1/completions``, ``/tokenize`` and ``/detokenize``, or
  ``/v1/embeddings``. The gateway has checked keys and limits, the engine checks fields and raises ``everlearn.errors``;
- may tell more by the headers and paths below, and by the header of :mod:`serve.answer_facts`;
- ends its running answers after SIGTERM, and ends at once when its standard input ends (:mod:`serve.engines.parent`).

:mod:`serve.engines.programs` is the table of engines. A chat request's path through one:

1. ``chat_template`` and ``tokenizer`` make it tokens, after ``context_bound`` has refused what cannot fit;
2. ``grammar`` writes down what the answer must follow: ``schemas`` has what can be enforced of JSON schemas, ``compile_check``
   compiles in a process of its own what may take too long;
3. ``onnx`` or ``vllm`` generates tokens that keep to it;
4. ``calls`` reads the text as it comes: text, calls of tools, stop strings.
"""

FAILED = 70
"""The exit code of an engine whose thread that computes has failed."""

NO_MEMORY = 71
"""The exit code of one that found no memory left; like a hang it speaks of what it was asked for, not of the next."""

HAND_OVER = "/hand-over"
"""POSTed to an engine once another one serves: what waits there and has not begun is refused by 503."""

TAKE_OVER = "/take-over"
"""POSTed to an engine that had handed over and serves again.

Only the ONNX engine knows the two; vLLM's queue ends where it stands.
"""

LEFT_OPEN = "x-everlearn-left-open"
"""The header that names what of a request's schemas no grammar enforces."""

USED = "/used/"
"""GET, with a request's number behind it: what it has used, also if it broke off. Only the ONNX engine tells."""

NUMBER_HEADER = "x-everlearn-request"
"""Under this number an engine remembers a request: the client's own id may not be the only one of its kind."""

SALT_HEADER = "x-everlearn-salt"
"""Whose request it is: engines share what they have computed among requests of one salt. Clients cannot send it."""
