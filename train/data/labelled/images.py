"""The picture of an pair of image and text: the bytes that a record holds or names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from everlearn.images import from_data_url, read_image
from train.data.reading.forms import fault

RIGHT = 'Right would be a file beside the records, as in "pictures/cat.png", or its bytes as "data:image/png;base64,…"'


def image_bytes(value: Any, folder: Path, source: str) -> bytes:
    """The encoded picture, not decoded yet. ``value``: a path that stays in ``folder``, a data URL, or what Parquet files
    of Hugging Face hold, {"bytes", "path"}. Raises InvalidInput that begins with ``source``; nothing is fetched."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.strip():
        raise fault(source, '"image" names no picture', RIGHT)
    if value[:5].lower() == "data:":
        return from_data_url(value, f'{source}: "image"')
    if "://" in value:
        raise fault(source, f'"image" is the address {value[:80]!r}, and nothing is fetched', RIGHT)
    try:
        path = (folder / value).resolve()
        is_inside = not Path(value).is_absolute() and path.is_relative_to(folder.resolve())
        is_file = is_inside and path.is_file()
        content = read_image(path, source) if is_file else b""
    except (OSError, ValueError) as error:
        raise fault(source, f'"image" is {value[:80]!r}, which cannot be read ({error})', RIGHT) from None
    if not is_inside:
        raise fault(source, f'"image" is {value[:80]!r}, which leaves the folder of the records', RIGHT)
    if not is_file:
        raise fault(source, f'"image" is {value[:80]!r}, and there is no such file', RIGHT)
    return content
