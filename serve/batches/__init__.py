"""OpenAI's batches: a file of requests, answered at low priority by a process of its own.

1. `table.py`: batches and their states in the database.
2. `lines.py`: the requests of a file, each checked.
3. `runner.py`: answers them and writes the output files.
4. `__main__.py`: the process.
"""
