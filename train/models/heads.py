"""A new head on the body of a model, for what labelled data teaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from everlearn.bundles.tasks import AUTO_CLASSES, Task
from everlearn.errors import Unsupported
from train.models.dropout import dropout_settings
from train.models.load import load_model

LABELLED_TASKS: frozenset[Task] = frozenset(
    {"classify", "token_classify", "question_answer", "score", "embed"}
)


def with_head(model_dir: Path, task: Task, labels: Sequence[str] | None, dropout: float | None = None) -> Any:
    """The body of the model in ``model_dir`` with the head of ``task`` (torch's generator decides which), or with its
    own where it is of this task already. ``labels``: the names that it tells apart, by number.

    Raises Unsupported where transformers has no such head for this kind of model, else as :func:`load_model`.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True)
    settings = {
        "pad_token_id": _padding(config),
        **head_settings(task, labels),
        **dropout_settings(config, dropout),
    }
    try:
        model = load_model(model_dir, task, new_head=task != "embed", settings=settings)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise Unsupported(
            f"{model_dir.name} is of a kind for which transformers has no {AUTO_CLASSES[task]}: take another base",
            param="base",
        ) from None
    return without_pooler(model, task)


def head_settings(task: Task, labels: Sequence[str] | None) -> dict[str, Any]:
    """What config.json says of the head."""
    if task in ("classify", "token_classify"):
        names = dict(enumerate(labels or ()))
        return {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    return {"num_labels": 1} if task == "score" else {}


def without_pooler(model: Any, task: Task) -> Any:
    """No embedding comes through the pooler that BERT has for predicting the next sentence."""
    if task == "embed" and getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def _padding(config: Any) -> int | None:
    """What rows are filled up with: decoders that know none are given their end token, so that transformers can tell
    where a text ends in a batch. Nothing here goes by this id, but by the texts' lengths."""
    text = config.get_text_config()
    ends = text.eos_token_id
    padding = getattr(text, "pad_token_id", None)
    return padding if padding is not None else (ends[0] if isinstance(ends, list) else ends)


def heads_of(model: Any) -> Iterator[str]:
    """The names of the parts that are not the body."""
    prefix = model.base_model_prefix
    if not hasattr(model, prefix):
        return
    yield from (name for name, _ in model.named_children() if name != prefix)


def train_heads(model: Any, names: Sequence[str]) -> None:
    """Those parts learn, whatever is frozen around them."""
    for name in names:
        part: nn.Module = model.get_submodule(name)
        for parameter in part.parameters():
            parameter.requires_grad_(True)
