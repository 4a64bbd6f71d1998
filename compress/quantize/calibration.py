"""The tokens that a quantizer reads: never those that quality is measured on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.recipe import Calibration
from everlearn.errors import InvalidInput, NotFound
from train.evaluate.held_out_text import HELD_OUT_TOKENS, held_out_text, token_windows

if TYPE_CHECKING:
    import numpy as np


def calibration_windows(chosen: Calibration, tokenizer_file: Path) -> np.ndarray:
    """Token ids as rows of equal length: int64 (windows, sequence_tokens); fewer where the source has fewer.

    Raises NotFound where there is no such file, InvalidInput where it holds less than one row.
    """
    if chosen.store:
        return store_windows(chosen, chosen.store)
    if chosen.text is None:
        limit = -(-HELD_OUT_TOKENS // chosen.sequence_tokens) * chosen.sequence_tokens + chosen.tokens
        windows = token_windows(tokenizer_file, held_out_text().text, limit, chosen.sequence_tokens)
        return windows[-(-HELD_OUT_TOKENS // windows.shape[1]) :]
    try:
        text = chosen.text.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(f"the calibration text {chosen.text}: {error.strerror}", param="calibration") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"the calibration text {chosen.text} is not UTF-8: {error}", param="calibration"
        ) from None
    try:
        return token_windows(tokenizer_file, text, chosen.tokens, chosen.sequence_tokens)
    except InvalidInput as error:
        raise InvalidInput(
            f"the calibration text {chosen.text}: {error.message}", param="calibration"
        ) from None


def store_windows(chosen: Calibration, store_dir: Path) -> np.ndarray:
    """Whole documents of a store in an order that ``seed`` decides, end to end, cut into rows."""
    import numpy as np

    from train.data.store import open_store

    store = open_store(store_dir)
    pieces: list[np.ndarray] = []
    wanted = chosen.tokens
    for index in np.random.default_rng(chosen.seed).permutation(len(store)):
        if wanted <= 0:
            break
        pieces.append(np.asarray(store[int(index)].ids[:wanted], dtype=np.int64))
        wanted -= len(pieces[-1])
    ids = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)
    rows = len(ids) // chosen.sequence_tokens
    if rows == 0:
        raise InvalidInput(
            f"the calibration store {store_dir} has {len(ids)} tokens; at least {chosen.sequence_tokens} are needed",
            param="calibration",
        )
    return ids[: rows * chosen.sequence_tokens].reshape(rows, chosen.sequence_tokens)


def seen(windows: np.ndarray) -> dict[str, Any]:
    """What a bundle says of the tokens that shaped it."""
    return {"tokens": int(windows.size), "sha256": hashlib.sha256(windows.tobytes()).hexdigest()}
