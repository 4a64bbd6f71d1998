"""Make names of files in any script: letters that a URL, a folder and a shell take."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from anyascii import anyascii

MAX_CHARS = 64
DIGEST_CHARS = 6


def plain_name(said: str, marks: str, otherwise: str) -> str:
    """``said`` in a to z, 0 to 9 and ``marks`` (such as ``"._-"``): transliterated, at most 64 characters.

    ``Größe`` gives ``grosse``, ``模型`` ``moxing``. Where nothing is left, or not all of it, a hash keeps two names
    apart; ``otherwise`` is for a name of nothing at all.
    """
    name = re.sub(rf"[^a-z0-9{re.escape(marks)}]+", "-", anyascii(said).lower())
    name = re.sub(r"\.{2,}", ".", name).strip("._-")
    same = unicodedata.normalize("NFC", said).strip()
    digest = hashlib.sha256(same.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_CHARS]
    if not name:
        return f"{otherwise}-{digest}" if same else otherwise
    if len(name) > MAX_CHARS:
        return f"{name[: MAX_CHARS - DIGEST_CHARS - 1].rstrip('._-')}-{digest}"
    return name
