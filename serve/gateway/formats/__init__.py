"""Between the chat completions that engines speak and the formats of other APIs.

1. `translator.py`: what a translator does, and the one that changes nothing.
2. `responses.py`: OpenAI's responses.
3. `messages.py`: Anthropic's messages.
4. `schema_check.py`: strict JSON schemas, checked on complete answers.
5. `schema_child.py`: the process that runs those checks.
"""
