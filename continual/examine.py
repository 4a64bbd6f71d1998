"""A job's gates: the candidate beside the champion on the same held examples, as float and as it would be served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from continual.gate import MIN_DOCUMENTS, Scores, Verdict, judge
from continual.measure import general_examples, pieces, score_examples
from continual.plan import Plan
from continual.recipe import BASE, GENERAL
from continual.reservoir import lowest
from continual.steps import Step, Steps
from continual.teach import data_store, replayed
from everlearn.bundle import Format
from everlearn.errors import EverlearnError, InvalidInput
from everlearn.progress import Progress
from train.data.store import Example

NEW = "this job"
"""The held examples of this very job, beside those of the domains before it; no domain has a space in its name."""


class GateRefused(EverlearnError):
    """The candidate is no better where it should be, or worse where it must not; the champion stays."""

    code = "gate_refused"


def held_examples(plan: Plan, data: Step, replay: Step, parent_dir: Path) -> dict[str, list[Example]]:
    """By name of the domain, ``NEW`` for this job's own; of each as many tokens as the recipe keeps.

    Raises InvalidInput where this job's own are too few to measure a gain on: before anything is trained.
    """
    limit = plan.recipe.replay.held_tokens
    without = replay.result["trained"]
    new = [example for _, example in lowest(data_store(data, "held"), limit, without=without)]
    held = {NEW: new} | {
        name: list(store) for name, store in replayed(replay, "held").items() if name != BASE
    }
    held = {name: pieces(examples) for name, examples in held.items()}
    if len(held[NEW]) < MIN_DOCUMENTS:
        raise InvalidInput(
            f"{len(held[NEW])} of the examples are held out, and measuring what is learned takes at least "
            f"{MIN_DOCUMENTS}: give more examples, a larger held_fraction, or a validation file",
            param="training_file",
        )
    return held | {GENERAL: general_examples(parent_dir / "tokenizer.json", limit)}


def score(
    steps: Steps,
    name: str,
    model_dir: Path,
    format: Format,
    held: Mapping[str, Sequence[Example]],
    progress: Progress,
) -> dict[str, Scores]:
    """Scores by domain, measured once: a job that is interrupted finds them in its folder."""

    def make(directory: Path) -> Mapping[str, Any]:
        examples = [example for domain in held.values() for example in domain]
        scores = score_examples(
            model_dir, format, examples, lambda done: progress(f"measuring {name}", done / len(examples))
        )
        return {"nll": scores.nll, "tokens": scores.tokens}

    result = steps.do(f"scores-{name.replace(' ', '-')}", make).result
    scores: dict[str, Scores] = {}
    start = 0
    for domain, examples in held.items():
        span = slice(start, start + len(examples))
        scores[domain] = Scores(tuple(result["nll"][span]), tuple(result["tokens"][span]))
        start += len(examples)
    return scores


def verdict(plan: Plan, champion: Mapping[str, Scores], candidate: Mapping[str, Scores]) -> Verdict:
    """The gate's decision over all domains."""
    earlier = {name: (champion[name], candidate[name]) for name in champion if name != NEW}
    new = champion[NEW], candidate[NEW]
    return judge(plan.domain, new, earlier, plan.recipe.gate, plan.recipe.seed)
