"""The HTTP server and its outermost layer.

1. `server.py`: uvicorn, with draining on SIGTERM.
2. `middleware.py`: id, headers, log line, metrics and trace of every request.
3. `exchange.py`: what is known about one request while it is answered.
4. `body.py`, `file_upload.py`: read bodies and uploads within limits.
5. `failures.py`: errors as HTTP responses.
6. `answer_watcher.py`: stops an answer on disconnect, silence, a slow reader, or shutdown.
7. `metrics.py`, `logs.py`: Prometheus metrics, and logs as JSON lines.
"""
