"""The same lessons without everlearn's care: fine-tuned one after the other on the new text alone.

And the measure of both: every model on every domain's held text, the same tokens for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from continual.learn.measure import score_examples
from continual.learn.plan import Plan
from continual.learn.teach import train_recipe
from everlearn.progress import Progress
from train.data.store import Example
from train.launch import launch


@dataclass(frozen=True)
class Lesson:
    """One job's new data, as the job itself prepared it."""

    domain: str
    plan: Plan
    store: Path


def train_naively(lessons: Sequence[Lesson], start_dir: Path, folder: Path, progress: Progress) -> list[Path]:
    """A model after each lesson: same steps over the new tokens, same learning rate, no replay. Resumable."""
    models: list[Path] = []
    for lesson in lessons:
        model_dir = models[-1] if models else start_dir
        outcome = launch(
            train_recipe(lesson.plan, lesson.store, kept=None),
            model_dir=model_dir,
            tokenizer_dir=start_dir,
            run_dir=folder / lesson.domain,
            progress=progress,
        )
        models.append(outcome.directory)
    return models


def losses(
    model_dir: Path, held: Mapping[str, Sequence[Example]], on_example: Callable[[int], None]
) -> dict[str, float]:
    """Mean negative log-likelihood of each domain's held text, in nats per token; torch, float32."""
    scores = score_examples(
        model_dir, "safetensors", [one for examples in held.values() for one in examples], on_example
    )
    found: dict[str, float] = {}
    start = 0
    for domain, examples in held.items():
        span = slice(start, start + len(examples))
        found[domain] = sum(scores.nll[span]) / sum(scores.tokens[span])
        start += len(examples)
    return found


@dataclass(frozen=True)
class Record:
    """Losses by domain: at the start, then after each lesson."""

    order: tuple[str, ...]
    rows: tuple[Mapping[str, float], ...]

    @property
    def gained(self) -> dict[str, float]:
        """By domain, nats per token from the start to the end; what a lesson did to other domains counts too."""
        return {name: start - self.rows[-1][name] for name, start in self.rows[0].items()}

    @property
    def gain(self) -> float:
        """The mean of :attr:`gained`, the general text included."""
        return sum(self.gained.values()) / len(self.gained)

    @property
    def forgotten(self) -> dict[str, float]:
        """By domain, nats per token lost between its best moment and the end: never below zero."""
        return {name: self.rows[-1][name] - min(row[name] for row in self.rows) for name in self.rows[0]}

    @property
    def forgetting(self) -> float:
        """The mean of :attr:`forgotten`."""
        return sum(self.forgotten.values()) / len(self.forgotten)

    @property
    def worst_loss(self) -> tuple[str, float]:
        """The domain that stood furthest below its best so far after any lesson, and by how many nats per token.

        Domains that were not taught yet count: a later lesson of their own may hide what was done to them.
        """
        drops = {
            (name, n): row[name] - min(earlier[name] for earlier in self.rows[: n + 1])
            for n, row in enumerate(self.rows)
            for name in row
        }
        (name, _), nats = max(drops.items(), key=lambda drop: drop[1])
        return name, nats
