"""Other looks of the same picture, so that few pictures teach more: moved, resized, turned, mirrored, in other colours; and
texts with tokens left out."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from train.data.augmenting.options import Augment


def augmented(image: NDArray[np.uint8], number: int, chosen: Augment, seed: int) -> NDArray[np.uint8]:
    """``image``, uint8 (size, size, 3), as it looks the ``number``-th time; a pure function of what is given."""
    random = np.random.default_rng((seed, number))
    up, side, zoom, turn, bright, contrast, vivid, *tint = random.uniform(-1, 1, 10)
    moved = _moved(
        image,
        shift=(chosen.shift * side, chosen.shift * up),
        zoom=1 + chosen.zoom * zoom,
        radians=math.radians(chosen.rotate * turn),
        mirrored=bool(random.random() < chosen.flip),
    )
    if not chosen.colour:
        return moved
    values = moved.astype(np.float32) * (1 + chosen.colour * bright)
    mean = values.mean()
    values = mean + (values - mean) * (1 + chosen.colour * contrast)
    grey = values.mean(2, keepdims=True)
    values = grey + (values - grey) * (1 + chosen.colour * vivid)
    values *= 1 + chosen.colour / 2 * np.array(tint, np.float32)
    return values.clip(0, 255).astype(np.uint8)


def kept_tokens(length: int, number: int, chosen: Augment, seed: int) -> NDArray[np.bool_]:
    """Which tokens of a text of ``length`` stay the ``number``-th time: bool (length,)."""
    keep = np.random.default_rng((seed, number, 1)).random(length) >= chosen.words
    keep[[0, -1]] = True
    return keep


def _moved(
    image: NDArray[np.uint8], shift: tuple[float, float], zoom: float, radians: float, mirrored: bool
) -> NDArray[np.uint8]:
    """``shift``: to the right and down, of the side."""
    from PIL import Image

    size = len(image)
    edge = size // 2
    whole = Image.fromarray(np.pad(image, ((edge, edge), (edge, edge), (0, 0)), mode="edge"))
    across, along = math.cos(radians) / zoom, math.sin(radians) / zoom
    sign = -1 if mirrored else 1
    middle = size / 2
    # where a place of the result is read: turned and resized around the middle, then moved
    left = edge + middle - size * shift[0] - (sign * across * middle - along * middle)
    top = edge + middle - size * shift[1] - (sign * along * middle + across * middle)
    places = (sign * across, -along, left, sign * along, across, top)
    read = whole.transform((size, size), Image.Transform.AFFINE, places, Image.Resampling.BILINEAR)
    return np.asarray(read, dtype=np.uint8)
