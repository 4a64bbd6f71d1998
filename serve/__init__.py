"""Serving: the gateway that clients talk to, the engines behind it, and the supervisor of both.

1. `cli.py`: the commands.
2. `supervisor/`: starts everything and keeps it running.
3. `gateway/`: the OpenAI-compatible HTTP server; its `__init__.py` follows a request.
4. `engines/`: the processes that run models.
5. `protocol/`: the request bodies that are accepted.
6. `batches/`: files of requests.
7. `replicas.py`: the table of engines, which supervisor and gateway share.
8. `answer_facts.py`, `bounded_http.py`, `json_body.py`, `tracing.py`: what gateway and engines share.
"""
