"""A job's training mixture: the new examples, and replayed ones in fixed shares of the tokens.

Replay, with the learning rate re-warmed and re-decayed, keeps what was learned before (arXiv 2403.08763). At the
few thousand tokens of a small job, replayed tokens themselves keep little; the distributions that the model's
parent predicts on them keep much (``train.objectives.keep``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from continual.learn.reservoir import content_sha256, priority
from continual.recipe import Replay
from everlearn.errors import InvalidInput
from train.data.store import Example, TokenStore, write_store

MAX_PASSES = 4
"""Up to about four passes, repeated tokens teach nearly as much as fresh ones (arXiv 2305.16264)."""


@dataclass(frozen=True)
class Source:
    """Examples by name, and which of them are taken, an index for each time one is."""

    name: str
    examples: Sequence[Example]
    taken: Sequence[int]

    @property
    def tokens(self) -> int:
        return sum(len(self.examples[index]) for index in self.taken)

    def report(self) -> dict[str, int]:
        """``distinct`` examples, ``examples`` with their repetitions, and ``tokens`` of the latter."""
        return {"distinct": len(set(self.taken)), "examples": len(self.taken), "tokens": self.tokens}


def mix(
    new: TokenStore,
    replayed: Mapping[str, Sequence[Example]],
    base: Sequence[Example],
    shares: Replay,
    without: Collection[str] = (),
) -> list[Source]:
    """The new examples but for those whose hash is in ``without``, then each earlier domain and the base.

    ``shares.share`` x the new tokens come from the earlier domains, evenly, ``shares.base`` x from the base; what
    is short is repeated, at most ``MAX_PASSES`` times. Raises InvalidInput where nothing new is left.
    """
    wanted = [n for n, example in enumerate(new) if content_sha256(example) not in without]
    sources = [Source("new", new, wanted)]
    tokens = sources[0].tokens
    if not tokens:
        raise InvalidInput(
            "nothing of the training file is new: every example is kept for measuring, or deleted"
        )
    for domain, examples in sorted(replayed.items()):
        share = shares.share * tokens / len(replayed)
        sources.append(Source(f"replay {domain}", examples, _filled(examples, share)))
    if base:
        sources.append(Source("base", base, _filled(base, shares.base * tokens)))
    return sources


def write_mixture(path: Path, sources: Sequence[Source], like: TokenStore, seed: int) -> dict[str, Any]:
    """Writes all that is taken as one store, in an order that ``seed`` alone decides; returns its counts."""
    order = [(n, index) for n, source in enumerate(sources) for index in source.taken]
    shuffled = sorted(range(len(order)), key=lambda place: priority(str(place), salt=f"mixture {seed}"))

    def examples() -> Iterator[Example]:
        for place in shuffled:
            source, index = order[place]
            yield sources[source].examples[index]

    card = like.card
    write_store(path, examples(), tokenizer_sha256=card.tokenizer_sha256, vocab_size=card.vocab_size)
    return {source.name: source.report() for source in sources}


def _filled(examples: Sequence[Example], tokens: float) -> list[int]:
    """Indices in turn, and again from the start, until they hold ``tokens``."""
    taken: list[int] = []
    total = 0
    for _ in range(MAX_PASSES):
        for index, example in enumerate(examples):
            if total >= tokens:
                return taken
            taken.append(index)
            total += len(example)
    return taken
