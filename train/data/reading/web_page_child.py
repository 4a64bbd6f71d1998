"""The process that extracts texts from HTML pages, see ``train.data.reading.web_page``."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from typing import Any

import trafilatura

from everlearn.processes.child import answer_each
from everlearn.progress import Progress


def work(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The page's text, or None. Where that takes too long, the system ends this process with SIGPROF."""
    page = request["page"] if request["is_text"] else request["page"].encode("latin-1")
    signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])
    try:
        return {"text": trafilatura.extract(page, include_comments=False)}
    except (
        ValueError,
        TypeError,
        RecursionError,
        AssertionError,
    ):  # what its libraries raise of broken pages
        return {"text": None}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    logging.disable()
    answer_each(work)
