"""Continuous batching: the rows that a decoder computes together, and how each row's next token is chosen.

In reading order:

- ``scheduler``: the thread that admits answers, computes prompts in chunks, and takes a decode step of all rows
- ``waiting``: the queue of answers without a row
- ``batch``: who holds which row, and its keys and values
- ``prefilling``: the prompts that are computed between decode steps, or beside them
- ``generation``: one answer; ``advance()`` chooses its next token and says what text that adds
- ``sampling``: logits to a token
- ``constraint``: the tokens that an answer's grammar allows next
- ``draft``: guesses of the next tokens, checked in one step
- ``decoder``: the graph in onnxruntime, over one cache of keys and values for all rows
- ``kv_cache``: that cache's memory
- ``prefix_cache``: keys and values of finished answers, for prompts that begin alike
"""
