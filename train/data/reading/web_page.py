"""The main text of an HTML page, by trafilatura, in a process of its own: a few bytes of HTML can keep it busy for
hours, and no limit in Python stops a parser written in C."""

from __future__ import annotations

import atexit
import re
import signal
from functools import cache

from everlearn.errors import Unavailable
from everlearn.processes.child import Limits
from everlearn.processes.worker import Worker, WorkerDied

MAX_PAGE_BYTES = 2**21
"""A larger page is left out; Common Crawl itself keeps one to five MiB of each."""
MAX_DEPTH = 1000
"""Elements within each other, counted by their tags before anything is parsed."""
PAGE_CPU_S = 20.0
"""An ordinary page takes a twentieth of a second. Time of the CPU, so that a busy machine leaves out no more."""
PAGE_MEMORY_BYTES = 2**31

TAG = re.compile(rb"<(/?)([a-zA-Z][a-zA-Z0-9]*)[^<>]*>")
VOID = frozenset(
    (b"area", b"base", b"br", b"col", b"embed", b"hr", b"img", b"input", b"link", b"meta", b"source", b"wbr", b"p", b"li", b"tr", b"td", b"th", b"dt", b"dd", b"option")
)  # fmt: skip
"""Those that nothing is within, and those whose end may be left out."""

Found = tuple[str, str | None]
"""The text, and where it is empty, why nothing was made of the page."""


def main_text(page: bytes, charset: str | None = None) -> Found:
    """What a page says, without its navigation, advertisements and comments; paragraphs are lines.

    ``charset`` is what HTTP says of it. The second part is None, or one of "too_large", "too_deep", "too_slow",
    "too_hungry" and "no_main_text".
    """
    if len(page) > MAX_PAGE_BYTES:
        return "", "too_large"
    if _depth(page) > MAX_DEPTH:
        return "", "too_deep"
    text = _decoded(page, charset)
    try:
        answer = _worker().ask(
            {
                "page": page.decode("latin-1") if text is None else text,
                "is_text": text is not None,
                "cpu_s": PAGE_CPU_S,
            }
        )
    except WorkerDied as error:
        if error.ended_with == -signal.SIGPROF:
            return "", "too_slow"
        return "", "too_hungry"
    except Unavailable as error:
        if error.code != "out_of_memory":
            raise
        return "", "too_hungry"
    said = answer["text"]
    return (said, None) if said else ("", "no_main_text")


def _depth(page: bytes) -> int:
    deepest = depth = 0
    for tag in TAG.finditer(page):
        if tag[2].lower() in VOID or tag[0].endswith(b"/>"):
            continue
        depth += -1 if tag[1] else 1
        depth = max(depth, 0)
        deepest = max(deepest, depth)
    return deepest


def _decoded(page: bytes, charset: str | None) -> str | None:
    """None where the page's own declaration, or its bytes, must tell the encoding."""
    try:
        return page.decode(charset) if charset else None
    except (LookupError, ValueError):
        return None


@cache
def _worker() -> Worker:
    """One per process, for all pages: it takes a second to start."""
    worker = Worker("train.data.reading.web_page_child", Limits("a web page", PAGE_MEMORY_BYTES, None))
    atexit.register(worker.close)
    return worker
