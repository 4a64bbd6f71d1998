"""Real text of several kinds: what models are measured on, and what they may read before.

Ships with everlearn or with Python: the Jargon File's prose, Genesis, and the topics of Python's ``help()``. What may
be read is more where Debian's packages ``dict-jargon`` and ``debian-handbook`` are installed.
"""

from __future__ import annotations

import gzip
import html
import json
import re
from importlib import resources
from pathlib import Path

from train.evaluate.held_out_text import held_out_text

JARGON = Path("/usr/share/dictd/jargon.dict.dz")
HANDBOOK = Path("/usr/share/doc/debian-handbook/html/en-US")
HELD_CHAPTER = 40
"""Of Genesis, from this chapter on."""
HELD_TOPIC = 4
"""Of Python's topics, every so many."""


def held() -> dict[str, str]:
    """Three texts nothing here reads before it is measured on them, by name."""
    return {
        "jargon": held_out_text().text,
        "scripture": "\n\n".join(chapters()[HELD_CHAPTER:]),
        "python": "\n\n".join(topics()[::HELD_TOPIC]),
    }


def readable() -> dict[str, list[str]]:
    """Documents of the same kinds, none of which is in :func:`held`, and of prose where it is installed."""
    found = {
        "scripture": chapters()[:HELD_CHAPTER],
        "python": [topic for at, topic in enumerate(topics()) if at % HELD_TOPIC],
    }
    if JARGON.is_file():
        found["jargon"] = jargon_entries()
    if HANDBOOK.is_dir():
        found["handbook"] = handbook_pages()
    return found


def write_readable(path: Path, chars: int) -> dict[str, int]:
    """About ``chars`` characters as JSON lines, as much of each kind as there is; returns how much of each."""
    kinds = readable()
    written = dict.fromkeys(kinds, 0)
    with path.open("w", encoding="utf-8") as file:
        for kind, documents in sorted(kinds.items(), key=lambda one: sum(map(len, one[1]))):
            share = (chars - sum(written.values())) / sum(1 for count in written.values() if not count)
            for document in documents:
                if written[kind] >= share:
                    break
                file.write(json.dumps({"text": document}) + "\n")
                written[kind] += len(document)
    return written


def chapters() -> list[str]:
    """Genesis in the King James version, a chapter each."""
    file = resources.files("continual.demo.texts") / "scripture.jsonl"
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def topics() -> list[str]:
    """Python's reference."""
    from pydoc_data.topics import topics as found

    return [found[name] for name in sorted(found)]


def jargon_entries() -> list[str]:
    """The Jargon File's entries that the held text has nothing of."""
    text = gzip.decompress(JARGON.read_bytes()).decode("utf-8", "replace")
    known = squeezed(held_out_text().text)
    entries = [one.strip() for one in re.split(r"\n(?=\S)", text) if len(one) > 200]
    return [one for one in entries if not any(part in known for part in pieces(squeezed(one)))]


def pieces(text: str, size: int = 40) -> list[str]:
    """Stretches of a text, such as two texts in common would have."""
    return [text[at : at + size] for at in range(0, max(1, len(text) - size), size)]


def squeezed(text: str) -> str:
    """Letters alone, so that line breaks and marks do not hide that two texts are one."""
    return re.sub(r"[^a-z]", "", text.lower())


def handbook_pages() -> list[str]:
    """The paragraphs of the Debian handbook, a page each."""
    pages: list[str] = []
    for file in sorted(HANDBOOK.rglob("*.html")):
        found = re.findall(r"<p[^>]*>(.*?)</p>|class=\"para\"[^>]*>(.*?)</div>", file.read_text(), re.DOTALL)
        paragraphs = [
            re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", "".join(one)))).strip() for one in found
        ]
        text = "\n\n".join(one for one in paragraphs if len(one) > 80)
        if len(text) > 1000:
            pages.append(text)
    return pages
