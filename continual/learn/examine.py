"""A job's gates: the candidate beside the champion on the same held-out examples, as float and as it would be served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from continual.learn.best import Best, Scored
from continual.learn.gate import Earlier, Scores, Verdict, judge
from continual.learn.measure import general_examples, score_whole
from continual.learn.plan import Plan
from continual.learn.reservoir import Held, content_sha256, lowest_held, priority
from continual.learn.teach import data_store, documents_of, replayed
from continual.queue.steps import Step, Steps
from continual.recipe import BASE, GENERAL, MIN_DOCUMENTS
from everlearn.bundles.bundle import Format
from everlearn.errors import EverlearnError, InvalidInput
from everlearn.progress import Progress
from train.data.store import Example

NEW = "this job"
"""The held-out examples of this very job, beside those of the domains before it; no domain has a space in its name."""

GateName = Literal["float", "served"]


class GateRefused(EverlearnError):
    """The candidate is no better where it should be, or worse where it must not; the champion stays."""

    code = "gate_refused"


@dataclass(frozen=True)
class Measured:
    """What is measured, by name of the domain, ``NEW`` for this job's own; ``notes`` are for who follows the job."""

    held: dict[str, list[Held]]
    notes: list[str] = field(default_factory=list[str])

    def examples(self) -> list[Example]:
        return [one.example for held in self.held.values() for one in held]


def held_examples(plan: Plan, data: Step, replay: Step, parent_dir: Path) -> Measured:
    """Of each domain as many tokens as the recipe keeps; a domain of which nothing is held is there, and empty.

    Raises InvalidInput where this job's own are too few to measure a gain on: before anything is trained.
    """
    limit = plan.recipe.replay.held_tokens
    trained = set(replay.result["trained"])
    store = data_store(data, "held")
    new = lowest_held(store, documents_of(data, "held"), limit, without=trained)
    documents = replay.result["documents"]
    earlier = {
        name: [_held(example, documents) for example in store]
        for name, store in replayed(replay, "held").items()
    }
    held = {name: earlier.get(name, []) for name in replay.result["domains"] if name != BASE}
    notes: list[str] = []
    if _documents(new) < MIN_DOCUMENTS and (known := held.get(plan.domain)):
        there = {one.sha256 for one in new}
        more = [one for one in known if one.sha256 not in there]
        notes.append(
            _why_few(new, store, trained)
            + f": measured on the {len(more)} that are kept of {plan.domain}, too"
        )
        new = [*new, *more]
    if _documents(new) < MIN_DOCUMENTS:
        raise InvalidInput(
            f"{_why_few(new, store, trained)}, and measuring what is learned takes at least {MIN_DOCUMENTS}: give more "
            "examples, a larger held_fraction, or a validation file of examples that no job was trained on",
            param="training_file",
        )
    general = [
        Held(sha256, example, title, priority(sha256))
        for title, examples in general_examples(parent_dir / "tokenizer.json", limit).items()
        for example in examples
        if (sha256 := content_sha256(example))
    ]
    return Measured({NEW: new} | held | {GENERAL: general}, notes)


def _why_few(new: Sequence[Held], store: Sequence[Example], trained: set[str]) -> str:
    """How many documents are left to measure on, and what became of the others."""
    known = [sha256 for example in store if (sha256 := content_sha256(example)) in trained]
    why = (
        f" ({len(known)} of the {len(store)} held-out examples were trained on by earlier jobs and lie in the replay "
        f"buffer: {', '.join(sha256[:12] for sha256 in known[:4])}{', …' if len(known) > 4 else ''})"
        if known
        else ""
    )
    return f"{_documents(new)} documents of the file are held out to measure on{why}"


def score(
    steps: Steps,
    name: str,
    model_dir: Path,
    format: Format,
    measured: Measured,
    progress: Progress,
) -> dict[str, Scores]:
    """Scores by domain and example, measured once: a job that is interrupted finds them in its folder."""

    def make(directory: Path) -> Mapping[str, Any]:
        examples = measured.examples()
        scores = score_whole(
            model_dir, format, examples, lambda done: progress(f"measuring {name}", done / len(examples))
        )
        return {"nll": scores.nll, "tokens": scores.tokens}

    result = steps.do(f"scores-{name.replace(' ', '-')}", make).result
    scores: dict[str, Scores] = {}
    start = 0
    for domain, held in measured.held.items():
        span = slice(start, start + len(held))
        scores[domain] = Scores(tuple(result["nll"][span]), tuple(result["tokens"][span]))
        start += len(held)
    return scores


def verdict(
    plan: Plan,
    name: GateName,
    measured: Measured,
    memory: Mapping[str, Sequence[Any]],
    champion: Mapping[str, Scores],
    candidate: Mapping[str, Scores],
) -> tuple[Verdict, list[Scored]]:
    """The gate's decision over all domains, and every held example's scores, for what is remembered of them.

    ``memory``: of the champion, by hash, what the best version of its line scored: domain, nats, tokens, version.
    """
    ref = plan.parent if name == "float" else plan.champion
    past = {sha256: Best(*row) for sha256, row in memory.items()}
    earlier: dict[str, Earlier] = {}
    scored: dict[str, Scored] = {}
    for domain, held in measured.held.items():
        before, after = champion[domain], candidate[domain]
        if domain == NEW:
            continue
        best, remembered = _best(domain, held, before, past, ref)
        rows = zip(held, before.tokens, after.nll, best, strict=True)
        for one, tokens, nll, its_best in rows:
            scored[one.sha256] = Scored(domain, one.sha256, tokens, nll, its_best, remembered)
        versions = sorted({one.version for one in best}) or [ref]
        earlier[domain] = Earlier(
            best=_by_document(held, Scores(tuple(one.nll for one in best), before.tokens)),
            champion=_by_document(held, before),
            candidate=_by_document(held, after),
            version=", ".join(versions),
            begins=not any(one.sha256 in past for one in held),
        )
    own = zip(measured.held[NEW], candidate[NEW].tokens, candidate[NEW].nll, strict=True)
    for one, tokens, nll in own:
        scored.setdefault(one.sha256, Scored(plan.domain, one.sha256, tokens, nll))
    new = _by_document(measured.held[NEW], champion[NEW]), _by_document(measured.held[NEW], candidate[NEW])
    decided = judge(plan.domain, new, earlier, plan.recipe.gate, plan.recipe.seed)
    return decided, list(scored.values())


def _best(
    domain: str, held: Sequence[Held], champion: Scores, past: Mapping[str, Best], ref: str
) -> tuple[list[Best], bool]:
    """Of each example the best so far, and whether that is what was remembered.

    The domain decides as a whole, on the examples that both were scored on: the best of every single example would
    be a model that never was. Where an example came later than the remembered best, the champion's score stands in.
    """
    own = [Best(domain, nll, tokens, ref) for nll, tokens in zip(champion.nll, champion.tokens, strict=True)]
    both = [
        (then, now)
        for one, now in zip(held, own, strict=True)
        if (then := past.get(one.sha256)) and then.tokens == now.tokens
    ]
    if not both or sum(now.nll - then.nll for then, now in both) <= 0:
        return own, False
    found = [past.get(one.sha256) or now for one, now in zip(held, own, strict=True)]
    return [then if then.tokens == now.tokens else now for then, now in zip(found, own, strict=True)], True


def _by_document(held: Sequence[Held], scores: Scores) -> Scores:
    """Sums over the examples of each document: parts of one are not independent."""
    nll: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for one, its_nll, its_tokens in zip(held, scores.nll, scores.tokens, strict=True):
        nll[one.document] = nll.get(one.document, 0.0) + its_nll
        tokens[one.document] = tokens.get(one.document, 0) + its_tokens
    return Scores(tuple(nll.values()), tuple(tokens.values()))


def _held(example: Example, documents: Mapping[str, str]) -> Held:
    sha256 = content_sha256(example)
    return Held(sha256, example, documents.get(sha256, sha256), priority(sha256))


def _documents(held: Sequence[Held]) -> int:
    return len({one.document for one in held})
