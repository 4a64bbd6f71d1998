"""What the objectives of labelled data have in common: their batches, and a model's inputs from them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from train.data.labelled.rows import LabelledRows
from train.objectives.objective import HeldOut, Judge, Objective, RunInputs

IGNORED = -100


def rows_of(run: RunInputs, *, padding_id: int = 0) -> LabelledRows:
    """What the run learns from."""
    assert run.store
    return LabelledRows(
        run.store,
        step_rows=run.recipe.rows,
        seed=run.recipe.seed,
        padding_id=padding_id,
        mixture=run.mixture,
    )


def held_rows(run: RunInputs, *, padding_id: int = 0) -> LabelledRows | None:
    """What it is measured on, in an order that no length decides; None where nothing is held out."""
    return LabelledRows(run.held_store, padding_id=padding_id) if run.held_store else None


def held_out(rows: LabelledRows | None, objective: Objective, judge: Judge) -> HeldOut | None:
    """Measures by both."""
    return HeldOut(rows, objective, judge, max(1.0, rows.tokens / rows.rows)) if rows else None


def inputs_of(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model is called with. Padding is masked by the examples' lengths, whatever its id."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": (batch["document_ids"] >= 0).long()}
    if getattr(model.config, "type_vocab_size", 0) > 1 and _takes(model, "token_type_ids"):
        inputs["token_type_ids"] = batch["segments"]
    return inputs


def sequence_logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """A classifier's logits, float32 (rows, labels); a decoder's at each text's last token, by its length."""
    inputs = inputs_of(model, batch)
    if not is_decoder(model):
        return model(**inputs).logits.float()
    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state  # (rows, seq, hidden)
    last = inputs["attention_mask"].sum(1) - 1
    return model.score(hidden[torch.arange(len(last), device=last.device), last]).float()


def is_decoder(model: Any) -> bool:
    """Whether its classifier reads the last token: those of transformers call that layer ``score``."""
    return isinstance(getattr(model, "score", None), nn.Linear)


def _takes(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def first_labels(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The label at each row's first token, int64 (n,), and the rows that have one, int64 (n,)."""
    labels = batch["labels"][:, 0]
    rows = (labels != IGNORED).nonzero().squeeze(1)
    return labels[rows], rows


def example_numbers(batch: Mapping[str, Tensor]) -> Tensor:
    """Each row's example, int64 (rows,)."""
    return batch["document_ids"][:, 0]
