"""The routes, one file per resource; `serve/gateway/app.py` adds each in one line.

1. `chat.py`: chat completions and completions.
2. `responses.py`: OpenAI's Responses API.
3. `embeddings.py`: vectors for texts.
4. `messages.py`: Anthropic's API.
5. `tokens.py`: tokenize and detokenize.
6. `models.py`: what is served, and deletion of fine-tuned versions.
7. `files.py`, `batches.py`, `fine_tuning.py`: OpenAI's APIs over the database.
8. `console.py`: what the administrators' page reads and does.
9. `health.py`: health, readiness and metrics.

`service.py` admits clients of the routes over the database, `paging.py` pages their lists, and `head_route.py` answers
HEAD.
"""
