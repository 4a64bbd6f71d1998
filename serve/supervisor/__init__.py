"""The supervisor, `everlearn serve`: prepares models, starts engines and gateways, and keeps them running.

1. `supervisor.py`: the main path, from the command to the shutdown.
2. `claims.py`: at most one supervisor per home, the listening sockets, a folder for the engines' sockets.
3. `prepare.py`: imports and compresses what is not servable yet.
4. `launcher.py`: starts an engine, and keeps its row for the gateways.
5. `watched.py`: a child process that is health-checked and restarted.
6. `warmup.py`: the requests that an engine must answer before it serves.
7. `swap.py`: replaces a model's version without a failed request.
8. `welcome.py`: what is printed once everything is ready.
"""
