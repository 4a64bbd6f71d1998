"""Remember which engine has the beginning of a prompt in its prefix cache.

A prompt is cut into blocks, each known by a hash over itself and all before it, so that equal hashes mean equal
beginnings. Engines keep what they have computed for a while (vLLM's prefix cache, the ONNX engine's slots); a gateway
remembers which blocks it has sent to which. After Srivatsa et al. 2024, "Preble": a request goes where its unread prompt and the
work already waiting there cost least together.
"""

from collections import OrderedDict

BLOCK_BYTES = 256
MAX_BLOCKS = 256
REMEMBERED = 8192
STARTS = (b'"messages":', b'"prompt":')


def blocks(body: bytes) -> list[int]:
    """The hashes of the whole blocks of a request's prompt, at most `MAX_BLOCKS`."""
    begins = min((at for start in STARTS if (at := body.find(start)) >= 0), default=len(body))
    hashes: list[int] = []
    for at in range(begins, min(len(body), begins + MAX_BLOCKS * BLOCK_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
        hashes.append(hash((hashes[-1] if hashes else 0, body[at : at + BLOCK_BYTES])))
    return hashes


class Prefixes:
    """The `REMEMBERED` blocks that one engine has read most recently."""

    def __init__(self) -> None:
        self._read: OrderedDict[int, None] = OrderedDict()

    def unread(self, prompt: list[int]) -> int:
        """The number of blocks of `prompt` after its known beginning."""
        for known, block in enumerate(prompt):
            if block not in self._read:
                return len(prompt) - known
        return 0

    def add(self, prompt: list[int]) -> None:
        """Remember that the engine has read `prompt`."""
        for block in prompt:
            self._read[block] = None
            self._read.move_to_end(block)
        while len(self._read) > REMEMBERED:
            self._read.popitem(last=False)
