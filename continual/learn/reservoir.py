"""Uniform samples of examples that depend on nothing but the examples: those whose hash is lowest.

A bottom-k sample (Cohen & Kaplan 2007): every example has a priority, a hash of its content, and those of lowest
priority are taken. It is uniform, the same whatever the order of what comes, and holds no example twice.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from continual.recipe import MIN_DOCUMENTS
from train.data.store import Example


def content_sha256(example: Example) -> str:
    """Names an example by its token ids and by which of them are targets."""
    digest = hashlib.sha256(np.asarray(example.ids, dtype="<i4").tobytes())
    digest.update(target_mask(example).tobytes())
    return digest.hexdigest()


def priority(sha256: str, salt: str = "buffer") -> float:
    """Uniform in [0, 1), and a function of its arguments alone."""
    digest = hashlib.sha256(f"{salt}:{sha256}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def lowest(
    examples: Sequence[Example], tokens: int, salt: str = "buffer", without: Collection[str] = ()
) -> list[tuple[str, Example]]:
    """The examples of lowest priority, each once, until they hold ``tokens``: hashes and examples, in order.

    The last one may reach beyond ``tokens``: keeping it is what makes the sample independent of order. Of
    a store on disk, only what is chosen comes into memory.
    """
    place = {content_sha256(example): number for number, example in enumerate(examples)}
    chosen: list[tuple[str, Example]] = []
    total = 0
    for sha256 in sorted(place.keys() - set(without), key=lambda sha256: (priority(sha256, salt), sha256)):
        if total >= tokens:
            break
        example = examples[place[sha256]]
        chosen.append((sha256, example))
        total += len(example)
    return chosen


@dataclass(frozen=True)
class Held:
    """An example to measure on; ``document`` is the hash of the document that it is a part of."""

    sha256: str
    example: Example
    document: str
    priority: float


def lowest_held(
    examples: Sequence[Example],
    documents: Sequence[str],
    tokens: int,
    without: Collection[str] = (),
) -> list[Held]:
    """As :func:`lowest`, but of every document one example before any second one, and of ``MIN_DOCUMENTS`` at least.

    What is measured on one long document would say little about others. ``documents``: of each example; where there
    are none, each example is its own.
    """
    place = {content_sha256(example): number for number, example in enumerate(examples)}
    ranks: Counter[str] = Counter()
    ranked: list[tuple[float, str, str]] = []
    for sha256 in sorted(place, key=lambda sha256: (priority(sha256), sha256)):
        document = documents[place[sha256]] if documents else sha256
        ranked.append((ranks[document] + priority(sha256), sha256, document))
        ranks[document] += 1
    chosen: list[Held] = []
    total, seen = 0, set[str]()
    for rank, sha256, document in sorted(ranked):
        enough = total >= tokens and (len(seen) >= MIN_DOCUMENTS or document in seen)
        if enough or sha256 in without:
            continue
        example = examples[place[sha256]]
        chosen.append(Held(sha256, example, document, rank))
        total += len(example)
        seen.add(document)
    return chosen


def target_mask(example: Example) -> np.ndarray:
    """The first token is never a target, whatever is said of it."""
    mask = np.array(example.mask, dtype=np.bool_)
    mask[:1] = False
    return mask
