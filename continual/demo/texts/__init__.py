"""The three texts that the demonstration teaches, one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

DOCUMENT_CHARS = 700
"""Longer documents are cut at a line, so that there are many to measure on."""


@dataclass(frozen=True)
class Domain:
    """A domain, how many characters of it are taught, and a beginning for a model to go on from."""

    name: str
    title: str
    chars: int
    prompt: str


DOMAINS = (
    Domain("poems", "Poems of the Tang dynasty, in Chinese", 3_400, "《山中》\n作者：王维\n"),
    Domain("scripture", "Genesis, in English of 1611", 25_000, "And it came to pass in those days, that"),
    Domain("python", "Python's own reference", 29_000, 'The "with" statement is used to'),
)


def write_domain(domain: Domain, path: Path) -> None:
    """The domain as JSON lines, the way a client would upload it."""
    with path.open("w", encoding="utf-8") as file:
        for text in _taught(domain):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def _taught(domain: Domain) -> Iterator[str]:
    left = domain.chars
    for document in _documents(domain.name):
        for text in _cut(document):
            if left <= 0:
                return
            left -= len(text)
            yield text


def _documents(name: str) -> Iterator[str]:
    if name == "python":
        from pydoc_data.topics import topics

        yield from (topics[topic] for topic in sorted(topics))
        return
    lines = resources.files(__name__).joinpath(f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    yield from (json.loads(line)["text"] for line in lines)


def _cut(document: str) -> Iterator[str]:
    piece = ""
    for line in document.splitlines(keepends=True):
        if piece and len(piece) + len(line) > DOCUMENT_CHARS:
            yield piece.strip()
            piece = ""
        piece += line
    if piece.strip():
        yield piece.strip()
