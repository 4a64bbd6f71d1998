"""Whether a device's runtime runs a graph, and computes what it should: real sessions of that runtime. In reading order:

``operators``: a graph's operators, one small graph each
``sessions``: where sessions of a target run on this machine
``native_session``, ``web_session.js``: the programs that open them
``check``: ``everlearn deploy check``
"""
