"""The gateway: the OpenAI-compatible HTTP server in front of the engines. It imports no model library.

The path of a chat request, file by file:

1. `http/server.py`: uvicorn accepts the connection, with the limits of `serve/bounded_http.py`.
2. `http/middleware.py`: the request gets an id and an `http/exchange.py`; at its end a log line, metrics and a trace.
3. `app.py`: the list of routes; `routes/chat.py` is the one that matches.
4. `state.py`: `Gateway.accept` checks the key, the queue, the body (`serve/protocol/`), the models of the key, its limits.
5. `routing/work.py`: the request as an engine gets it; `Gateway.relay` makes the response, `routing/relay.py`.
6. `routing/dispatch.py`: opens a reply, with retries and fallbacks; `routing/router.py` chooses the engine.
7. `routing/reply.py`: sends the request, and reads the engine's answer until it has really begun.
8. `routing/relay.py`: passes on the answer as it comes, under the time limits of `http/answer_watcher.py`.

`__main__.py` starts the process.
"""
