"""Images from bytes that strangers send: bounded before they are decoded, and the same numbers everywhere.

What a model of images and texts sees of an image is what CLIP's own preprocessing makes of it (arXiv 2103.00020): the
shorter side is resized to the model's size, bicubic, and the middle is cut out.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Pillow reads more, some by programs that it starts; these are what pages and phones have."""
MAX_BYTES = 20 * 1024**2
MAX_PIXELS = 40_000_000
MAX_SIDES = 50
"""An image whose longer side is so many times the shorter would be resized to a huge one, to lose all but a strip."""

DATA_URL = re.compile(r"data:image/[\w.+-]{1,40}(?:;[\w=.-]{1,40})*;base64,", re.ASCII | re.IGNORECASE)


def read_image(path: Path, source: str = "") -> bytes:
    """The bytes of a file, not decoded yet. Raises InvalidInput, which begins with ``source``, for more than ``MAX_BYTES``."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise _fault(source, f"{path.name} has more than {MAX_BYTES // 1024**2} MiB", "Make it smaller")
    return content


def from_data_url(url: str, source: str = "") -> bytes:
    """The bytes of ``data:image/png;base64,…``, not decoded yet. Raises InvalidInput."""
    head = DATA_URL.match(url[:200])
    if not head:
        shown = url[:40] + ("…" if len(url) > 40 else "")
        raise _fault(source, f"{shown!r} is no image", "Right would be data:image/png;base64,…")
    return from_base64(url[head.end() :], source)


def from_base64(written: str, source: str = "") -> bytes:
    """The bytes of an image that was sent so, not decoded yet. Raises InvalidInput."""
    if len(written) > MAX_BYTES * 4 // 3 + 4:
        raise _fault(source, f"has more than {MAX_BYTES // 1024**2} MiB", "Make the image smaller")
    try:
        return base64.b64decode(written, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _fault(source, f"is no base64 ({error})", "Encode the file's bytes as base64") from None


def pixels(content: bytes, size: int, source: str = "") -> NDArray[np.uint8]:
    """The image as a model of ``size`` pixels a side sees it; uint8 (size, size, 3), red, green, blue.

    Turned as its EXIF says; what is transparent becomes white; of an animation the first picture. Raises InvalidInput,
    which begins with ``source``, for what is no image, is broken, or is larger than the bounds: those are read from its
    head, before anything is decoded.
    """
    import numpy as np
    from PIL import Image, ImageOps

    with _opened(content, source) as image:
        image.load()
        shown = _on_white(ImageOps.exif_transpose(image))
    short = min(shown.size)
    width, height = (max(size, int(size * side / short)) for side in shown.size)
    resized = shown.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)), dtype=np.uint8)


def pixel_count(content: bytes, source: str = "") -> int:
    """How many pixels it has, by its head alone. Raises InvalidInput as :func:`pixels` does for what is no image."""
    with _opened(content, source) as image:
        return image.width * image.height


@contextmanager
def _opened(content: bytes, source: str) -> Generator[Image]:
    """Nothing is decoded yet; what is raised inside becomes an InvalidInput, too."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _refuse_size(image, source)
                yield image
    except UnidentifiedImageError:
        what = "is empty" if not content else f"is no image ({content[:8]!r}…)"
        raise _fault(source, what, f"Known are {', '.join(FORMATS)}") from None
    except InvalidInput:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _fault(source, f"has more than {MAX_PIXELS} pixels", "Make it smaller") from None
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise nearly anything for a broken file
        first = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise _fault(source, f"is broken ({first})", "Open it and save it anew") from None


def _refuse_size(image: Image, source: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _fault(source, f"has {width} by {height} pixels", f"At most {MAX_PIXELS} are read")
    if max(width, height) > MAX_SIDES * min(width, height):
        raise _fault(
            source, f"is {width} by {height}, a strip", f"A side is at most {MAX_SIDES} times the other"
        )


def _on_white(image: Image) -> Image:
    from PIL import Image as module

    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value / 256).convert("L")  # whose 16 bits Pillow would clip to 8
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        over = image.convert("RGBA")
        return module.alpha_composite(module.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def _fault(source: str, what: str, right: str) -> InvalidInput:
    return InvalidInput(f"{source or 'the image'}: {what}. {right}", param="image")
