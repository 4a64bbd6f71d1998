"""The request bodies that this server accepts, as allow-lists, and OpenAI's objects that it answers with.

1. `body.py`: what all bodies share.
2. `parsing.py`: from bytes to a body and back, and errors that name the field.
3. `sampling.py`: the parameters of generation.
4. `chat.py`, `completions.py`, `embeddings.py`: OpenAI's inference.
5. `responses.py`: OpenAI's Responses API.
6. `messages.py`: Anthropic's messages.
7. `tokens.py`: tokenize and detokenize.
8. `jobs.py`: fine-tuning jobs and files.
9. `batches.py`: batches.
"""
