"""An engine without memory: what goes on in one fails most requests, for ever. It ends, and a clean one is started."""

from __future__ import annotations

import errno

from serve.engines import FAILED, NO_MEMORY


def lacks_memory(error: BaseException) -> bool:
    """Whether memory, or that of a thread, could not be had: by Python, the system or onnxruntime."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error)
    by_onnxruntime = type(error).__module__.startswith("onnxruntime") and "alloc" in text
    return isinstance(error, MemoryError) or by_onnxruntime or "can't start new thread" in text


def exit_code(error: BaseException) -> int:
    """With what code the process ends after `error`."""
    return NO_MEMORY if lacks_memory(error) else FAILED
