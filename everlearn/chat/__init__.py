"""Chats. In reading order:

``template``: a model's chat template, rendered
``bounded_jinja``: templates that end: in bounded time and memory, with one kind of error
``budget``: what one rendering may still do
``bounded_filters``: filters and methods that ask the budget
``stops``: the tokens that end a turn or a text
"""
