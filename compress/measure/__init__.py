"""Measures of a compression: quality, size and speed.

- ``parity``: the gate before a result is registered.
- ``parent_divergence``: how far a decoder's predictions are from its parent's, on held-out text.
- ``compare``: ``everlearn compare``, several versions beside the first. ``quality``: its metrics on texts; ``speed``: its
  timings; ``report``: its table and its page.
"""
