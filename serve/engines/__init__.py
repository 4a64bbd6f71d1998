FAILED = 70
"""The exit code of an engine whose thread that computes has failed."""

NO_MEMORY = 71
"""The exit code of one that found no memory left; like a hang it speaks of what it was asked for, not of the next."""

HAND_OVER = "/hand-over"
"""POSTed to an engine once another one serves: what waits there and has not begun is refused by 503."""

TAKE_OVER = "/take-over"
"""POSTed to an engine that had handed over and serves again.

Only the ONNX engine knows the two; vLLM's queue ends where it stands.
"""

LEFT_OPEN = "x-everlearn-left-open"
"""The header that names what of a request's schemas no grammar enforces."""

USED = "/used/"
"""GET, with a request's number behind it: what it has used, also if it broke off. Only the ONNX engine tells."""

NUMBER_HEADER = "x-everlearn-request"
"""Under this number an engine remembers a request: the client's own id may not be the only one of its kind."""

SALT_HEADER = "x-everlearn-salt"
"""Whose request it is: engines share what they have computed among requests of one salt. Clients cannot send it."""
