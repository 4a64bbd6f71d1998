"""A job's steps up to a trained candidate: data, replay, the model's own samples, their mixture, training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine

from continual.learn.best import recall
from continual.learn.mixture import mix, write_mixture
from continual.learn.plan import Plan
from continual.learn.replay import DELETED, hashes, read_buffer, sample, sizes
from continual.learn.self_replay import generate_examples
from continual.queue.steps import Step, Steps
from continual.recipe import BASE, MIN_DOCUMENTS
from everlearn.bundles.bundle import write_bundle
from everlearn.progress import Progress
from everlearn.registry.database import read
from everlearn.registry.registry import Version
from everlearn.settings import ContinualSettings
from train.data.options import DataOptions
from train.data.prepare import Source
from train.data.prepare_child import prepare_limited
from train.data.store import Example, TokenStore, open_store, write_store
from train.launch import Outcome, launch
from train.recipe import Checkpoint, Data, Keep, Optimizer, Schedule, TrainRecipe, Tune


@dataclass(frozen=True)
class Upload:
    """An uploaded file: where its bytes lie, and the name that says what they are."""

    path: Path
    name: str


def prepare_data(
    steps: Steps,
    plan: Plan,
    parent_dir: Path,
    training: Upload,
    validation: Upload | None,
    limits: ContinualSettings,
    progress: Progress,
) -> Step:
    """``train`` and ``held`` stores of the upload; a validation file takes the place of the held-out documents.

    The files are read in a process that ``limits`` hold. Raises InvalidInput naming what is wrong with them.
    """

    def make(directory: Path) -> Mapping[str, Any]:
        recipe = plan.recipe
        options = DataOptions(
            held_fraction=recipe.held_fraction, min_held=MIN_DOCUMENTS, max_tokens=recipe.sequence_tokens
        )
        sources = [Source(training.path, training.name)]
        if validation:
            sources.append(Source(validation.path, validation.name, held=True))
        card = prepare_limited(
            sources,
            parent_dir,
            directory / "data",
            options,
            progress,
            max_unpacked_bytes=limits.max_unpacked_bytes,
            memory_bytes=limits.data_memory_bytes,
            wall_s=limits.data_timeout_s,
        )
        return card.model_dump(mode="json")

    return steps.do("data", make)


def data_store(data: Step, split: str) -> TokenStore:
    return open_store(data.directory / "data" / split)


def documents_of(data: Step, split: str) -> list[str]:
    """Of each example of a store the hash of the document that it is a part of."""
    lengths = iter(np.diff(data_store(data, split).offsets).tolist())
    documents: list[str] = []
    with (data.directory / "data" / f"{split}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            left = document["tokens"]
            while left > 0:
                left -= next(lengths)
                documents.append(document["sha256"])
    return documents


def draw_replay(steps: Steps, plan: Plan, database: Engine, data: Step) -> Step:
    """What the buffer gives this job: to train on by domain, to measure on by domain, and what to leave out.

    And what the gate remembers of the champion, by gate: of each held example domain, nats, tokens and version. Drawn
    once, since the buffer may change before a job that was interrupted goes on.
    """

    def make(directory: Path) -> Mapping[str, Any]:
        new = data_store(data, "train")
        corrupt: list[str] = []
        with read(database) as connection:
            known = sizes(connection, plan.model)
            earlier = [name for name, splits in known.items() if "train" in splits and name != BASE]
            wanted = plan.recipe.replay.share * new.card.tokens / max(1, len(earlier))
            drawn = {BASE: read_buffer(connection, plan.model, "train", BASE)}
            for name in earlier:
                drawn[name] = sample(connection, plan.model, name, round(wanted), plan.recipe.seed)
            held = read_buffer(connection, plan.model, "held")
            without = hashes(connection, plan.model, "held") | hashes(connection, plan.model, DELETED)
            trained = hashes(connection, plan.model, "train")
            memory = {
                "float": _memory(connection, plan.model, plan.parent_digest),
                "served": _memory(connection, plan.model, plan.champion_digest),
            }
        for name, reading in drawn.items():
            corrupt += reading.corrupt
            _write(directory / "train" / name, [kept.example for kept in reading.kept], new)
        for name, examples in held.by_domain().items():
            _write(directory / "held" / name, [kept.example for kept in examples], new)
        return {
            "domains": sorted(known),
            "documents": {kept.sha256: kept.document for kept in held.kept},
            "memory": memory,
            "corrupt": sorted({*corrupt, *held.corrupt}),
            "without": sorted(without),
            "trained": sorted(trained),
        }

    return steps.do("replay", make)


def _memory(connection: Connection, model: str, digest: str) -> dict[str, list[Any]]:
    found = recall(connection, model, digest)
    return {sha256: list(vars(best).values()) for sha256, best in sorted(found.items())}


def replayed(replay: Step, split: str) -> dict[str, TokenStore]:
    """Stores of the buffer's examples, by domain."""
    cards = sorted((replay.directory / split).glob("*/card.json"))
    return {card.parent.name: open_store(card.parent) for card in cards}


def sample_base_replay(
    steps: Steps, plan: Plan, parent_dir: Path, data: Step, replay: Step, progress: Progress
) -> Step:
    """Self-generated replay: samples of the base model, from the buffer, or before the model's first job new ones."""

    def make(directory: Path) -> Mapping[str, Any]:
        there = replayed(replay, "train").get(BASE)
        options = plan.recipe.generation
        if there or not plan.recipe.replay.base or not options.tokens:
            return {"generated": 0}
        examples = generate_examples(parent_dir, options, plan.recipe.seed, progress)
        _write(directory / BASE, examples, data_store(data, "train"))
        return {"generated": len(examples)}

    return steps.do("base", make)


def base_store(base: Step) -> TokenStore | None:
    """What this job generated; None where it did not."""
    return open_store(base.directory / BASE) if base.result["generated"] else None


def mix_sources(steps: Steps, plan: Plan, data: Step, replay: Step, base: Step) -> Step:
    """The stores to train on: ``store``, what is new, and where there is any, ``kept``, what must stay."""

    def make(directory: Path) -> Mapping[str, Any]:
        new, earlier = data_store(data, "train"), replayed(replay, "train")
        own = base_store(base) or earlier.get(BASE) or []
        earlier.pop(BASE, None)
        recipe = plan.recipe
        if not recipe.replay.share:
            earlier = {}
        without = set(replay.result["without"])
        taught, *kept = mix(new, earlier, own if recipe.replay.base else [], recipe.replay, without)
        counts = write_mixture(directory / "store", [taught], new, recipe.seed)
        if any(source.taken for source in kept):
            counts |= write_mixture(directory / "kept", kept, new, recipe.seed)
        return counts

    return steps.do("mixture", make)


def train_candidate(
    steps: Steps,
    plan: Plan,
    parent_dir: Path,
    mixture: Step,
    progress: Progress,
    on_step: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool],
) -> Outcome:
    """Trains in the job's folder; goes on from its checkpoint, and finished, returns at once.

    Raises Diverged, and Stopped, with a checkpoint, once ``should_stop`` says so.
    """
    kept = mixture.directory / "kept"
    recipe = train_recipe(plan, mixture.directory / "store", kept if kept.is_dir() else None)
    run_dir = steps.folder / "run"
    return launch(
        recipe,
        model_dir=parent_dir,
        tokenizer_dir=parent_dir,
        run_dir=run_dir,
        progress=progress,
        on_step=on_step,
        should_stop=should_stop,
    )


def train_recipe(plan: Plan, store: Path, kept: Path | None) -> TrainRecipe:
    """The learning rate is warmed up anew and decayed anew (arXiv 2403.08763); ``kept`` text is not unlearned."""
    recipe = plan.recipe
    rows = max(1, round(recipe.batch_tokens / recipe.sequence_tokens))
    lora = {"rank": recipe.lora.rank, "alpha": recipe.lora.alpha} if recipe.tune == "lora" else {}
    return TrainRecipe(
        base=plan.parent,
        data=Data(store=store),
        keep=Keep(store=kept, weight=recipe.replay.weight) if kept and recipe.replay.weight else None,
        tune=Tune(method=recipe.tune, **lora),
        sequence_tokens=recipe.sequence_tokens,
        batch_tokens=rows * recipe.sequence_tokens,
        micro_batch=recipe.micro_batch,
        epochs=recipe.epochs,
        optimizer=Optimizer(lr=recipe.lr * recipe.lr_multiplier),
        schedule=Schedule(warmup_fraction=recipe.warmup, final_fraction=recipe.final_lr),
        dtype=recipe.dtype,
        checkpoint=Checkpoint(every_s=recipe.checkpoint_every_s, keep=1),
        seed=recipe.seed,
        threads=plan.threads,
    )


def bundle_candidate(
    steps: Steps, plan: Plan, parent: Version, outcome: Outcome, told: Mapping[str, Any]
) -> Step:
    """The trained weights as a bundle: written once, so that a retry registers the very same one."""

    def make(directory: Path) -> Mapping[str, Any]:
        bundle = directory / "bundle"
        shutil.copytree(outcome.directory, bundle)
        manifest = write_bundle(
            bundle,
            name=plan.model,
            format="safetensors",
            task=parent.manifest.task,
            architecture=parent.manifest.architecture,
            parameters=parent.manifest.parameters,
            parent=parent.digest,
            recipe={"continual": plan.recipe.model_dump(mode="json"), "domain": plan.domain, **told},
            metrics=outcome.metrics,
        )
        return {"digest": manifest.digest}

    return steps.do("candidate", make)


def _write(path: Path, examples: list[Example], like: TokenStore) -> None:
    """A store, or nothing where there are no examples."""
    if examples:
        card = like.card
        path.parent.mkdir(parents=True, exist_ok=True)
        write_store(path, examples, tokenizer_sha256=card.tokenizer_sha256, vocab_size=card.vocab_size)
