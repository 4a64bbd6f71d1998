HAND_OVER = "/hand-over"
"""POSTed to an engine once another one serves: what waits there and has not begun is refused by 503.

Only the ONNX engine knows it; vLLM's queue ends where it stands.
"""
