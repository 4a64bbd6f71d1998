"""The training objectives, one entry each.

A recipe's key ``objective`` is validated by this table, and the help of ``everlearn train`` and the table in
docs/training.md are made from it. As the help must be quick, it imports neither torch nor pydantic: the class is named
by a string, and imported when a run starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from everlearn.bundles.tasks import TASK_WORDS, Task
from everlearn.suggest import did_you_mean
from train.models.families import FAMILIES

TRAIN = "everlearn train"
PACKED = ("input_ids", "labels", "position_ids", "document_ids")
"""What a batch of ``train.data.packing.Packer`` holds: int64 (rows, seq) each."""
LABELLED = ("input_ids", "labels", "segments", "document_ids")
"""What a batch of ``train.data.labelled.rows.LabelledRows`` holds: int64 (rows, longest) each."""


@dataclass(frozen=True)
class ObjectiveSpec:
    """One objective.

    ``implementation``: "module:Class". A class that ``everlearn train`` runs has the class method ``for_run`` (see
    ``train.objectives.objective.Training``). ``options``: the recipe key with its settings; a recipe that has the key
    chooses the objective. ``models``: which it fits. ``batch``: the keys of a batch. ``task``: of the bundle it makes.
    ``command``: which runs it. ``data``: the kind of labelled data it learns from, see ``train.data.labelled.example``.
    """

    name: str
    implementation: str
    summary: str
    models: str
    batch: tuple[str, ...] = PACKED
    task: Task = "generate"
    options: str | None = None
    command: str = TRAIN
    data: str | None = None

    def load(self) -> Any:
        """The class. Imports torch."""
        module, _, name = self.implementation.partition(":")
        return getattr(import_module(module), name)


CAUSAL_LM = ObjectiveSpec(
    "causal-lm",
    "train.objectives.causal:CausalLM",
    "cross-entropy of the next token",
    "decoders, from a base or from scratch",
)

MASKED_LM = ObjectiveSpec(
    "masked-lm",
    "train.objectives.masked:MaskedLM",
    "cross-entropy of words hidden in the text, 15% of it",
    "encoders (BERT, RoBERTa, DistilBERT, ModernBERT), from a base or from scratch",
    task="fill_mask",
)

PAIRS = ("input_ids", "document_ids", "decoder_input_ids", "decoder_document_ids", "labels")
"""What a batch of ``train.data.corruption.pairs`` holds: int64 (rows, source) twice, (rows, target) each."""

SPAN_CORRUPTION = ObjectiveSpec(
    "span-corruption",
    "train.objectives.seq2seq:SpanCorruption",
    "cross-entropy of spans hidden in the text, 15% of it, three tokens long",
    "encoder-decoders (T5), from a base or from scratch",
    batch=PAIRS,
    task="text2text",
)

CONTRASTIVE = ObjectiveSpec(
    "contrastive",
    "train.objectives.contrastive:Contrastive",
    "cross-entropy of each image's text, and of each text's image, among the whole step's",
    "models of images and texts (CLIP), from a base or from scratch",
    batch=("input_ids", "labels", "document_ids", "images", "keys"),
    task="image_text",
    data="contrastive",
)

OF_FAMILIES: Mapping[Task, ObjectiveSpec] = {
    "generate": CAUSAL_LM,
    "fill_mask": MASKED_LM,
    "text2text": SPAN_CORRUPTION,
    "image_text": CONTRASTIVE,
}
"""What a model from scratch minimizes by default, by its family's task."""
ENCODERS_DO: frozenset[Task] = frozenset(
    {"fill_mask", "embed", "classify", "token_classify", "question_answer", "score"}
)
"""Tasks of models that a family of encoders can be made as."""

OBJECTIVES: dict[str, ObjectiveSpec] = {
    spec.name: spec
    for spec in (
        CAUSAL_LM,
        MASKED_LM,
        SPAN_CORRUPTION,
        ObjectiveSpec(
            "seq2seq",
            "train.objectives.seq2seq:Seq2Seq",
            "cross-entropy of the target's tokens, given the source",
            "encoder-decoders (T5), from a base or from scratch",
            batch=PAIRS,
            task="text2text",
            data="seq2seq",
        ),
        ObjectiveSpec(
            "keep",
            "train.objectives.keep:Keeping",
            "cross-entropy of the next token on new text, and KL divergence from the base on kept text",
            "decoders with a base",
            batch=(*PACKED, "kept_rows"),
            options="keep",
        ),
        ObjectiveSpec(
            "classification",
            "train.objectives.classification:Classification",
            "cross-entropy of each text's label",
            "encoders and decoders, with a new head",
            batch=LABELLED,
            task="classify",
            data="classification",
        ),
        ObjectiveSpec(
            "token-classification",
            "train.objectives.token_classification:TokenClassification",
            "cross-entropy of each word's tag",
            "encoders, with a new head",
            batch=LABELLED,
            task="token_classify",
            data="token-classification",
        ),
        ObjectiveSpec(
            "question-answering",
            "train.objectives.question_answering:QuestionAnswering",
            "cross-entropy of an answer's first and last token in its context",
            "encoders, with a new head",
            batch=LABELLED,
            task="question_answer",
            data="question-answering",
        ),
        ObjectiveSpec(
            "pair-scoring",
            "train.objectives.pair_scoring:PairScoring",
            "binary cross-entropy of a pair's score",
            "encoders and decoders, with a new head",
            batch=LABELLED,
            task="score",
            data="pair-scoring",
        ),
        ObjectiveSpec(
            "embedding",
            "train.objectives.embedding:Embedding",
            "cross-entropy of each anchor's positive among all of the step",
            "encoders",
            batch=LABELLED,
            task="embed",
            data="embedding",
        ),
        CONTRASTIVE,
    )
}
"""By name: those of this room, and those that other rooms add as they are imported."""


def register_objective(spec: ObjectiveSpec) -> None:
    """Adds the objective of a room above this one, which runs it by a command of its own. Raises ValueError if taken."""
    if OBJECTIVES.setdefault(spec.name, spec) != spec:
        raise ValueError(f"there already is an objective {spec.name}: {OBJECTIVES[spec.name].implementation}")


def trainable() -> list[ObjectiveSpec]:
    """Those that a recipe of ``everlearn train`` may name."""
    return [spec for spec in OBJECTIVES.values() if spec.command == TRAIN]


def implied(recipe: Mapping[str, Any]) -> ObjectiveSpec:
    """What a recipe asks for that names no objective: by a key with an objective's settings, or by its family's task."""
    by_key = (spec for spec in trainable() if spec.options and recipe.get(spec.options))
    return next(by_key, OF_FAMILIES[FAMILIES[_family(recipe)].task])


def _family(recipe: Mapping[str, Any]) -> Any:
    """Of ``architecture``, a mapping or a model; that of a recipe without one, or of an earlier one, is the first."""
    made = recipe.get("architecture")
    said = made.get("family") if isinstance(made, Mapping) else getattr(made, "family", None)
    return said or next(iter(FAMILIES))


def find_objective(name: str) -> ObjectiveSpec:
    """The objective of this name. Raises ValueError with those that a recipe may name."""
    known = {spec.name: spec for spec in trainable()}
    if name in known:
        return known[name]
    if name in OBJECTIVES:
        raise ValueError(f"{name} is run by {OBJECTIVES[name].command}, not by {TRAIN}")
    raise ValueError(f"known objectives are {', '.join(known)}{did_you_mean(name, list(known))}")


def refuse_inconsistent(spec: ObjectiveSpec, recipe: Mapping[str, Any]) -> None:
    """Raises ValueError if settings of another objective are in the recipe, or those of ``spec`` are missing."""
    if (other := implied(recipe)).options and other != spec:
        raise ValueError(f"{other.options} sets up objective: {other.name}, and objective is {spec.name}")
    if spec.options and not recipe.get(spec.options):
        raise ValueError(f"objective: {spec.name} needs the key {spec.options}")
    if recipe.get("architecture"):
        family = _family(recipe)
        own = FAMILIES[family].task
        if spec.task != own and not (own == "fill_mask" and spec.task in ENCODERS_DO):
            fitting = ", ".join(name for name, one in FAMILIES.items() if one.task == spec.task)
            raise ValueError(
                f"objective: {spec.name} makes {TASK_WORDS[spec.task]}, and the family {family} is "
                f"{TASK_WORDS[own]}: architecture.family of {fitting or 'no model from scratch'} would do"
            )


def help_line() -> str:
    """For the command line."""
    return "Objectives: " + "; ".join(f"{spec.name}: {spec.summary}" for spec in trainable()) + "."


def markdown(specs: Iterable[ObjectiveSpec]) -> str:
    """For docs/training.md."""
    rows = ["| objective | minimizes | models | a batch holds | command |", "|---|---|---|---|---|"]
    for spec in specs:
        batch = ", ".join(f"`{key}`" for key in spec.batch)
        rows.append(f"| `{spec.name}` | {spec.summary} | {spec.models} | {batch} | `{spec.command}` |")
    return "\n".join(rows)
