"""Sentence embeddings from pairs that belong together: in a batch, all others do not.

InfoNCE over cosine similarities (arXiv 1807.03748, as sentence-transformers' MultipleNegativesRankingLoss), with
negatives of the data's own where it has them, at several lengths of the embedding at once where asked
(Matryoshka, arXiv 2205.13147). All rows of a step, of all ranks, are each other's negatives: encoded some at a time and
again for their gradients (as GradCache, arXiv 2101.06983), so that neither memory nor ranks change the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everlearn.errors import ConfigError
from train.models.sentence import hidden_size, pooling_of
from train.objectives.labelled import IGNORED, example_numbers, held_out, held_rows, rows_of
from train.objectives.objective import RunInputs, Training
from train.objectives.whole_batch import first_row, gathered, in_chunks
from train.recipe import Embedding as Settings

SAME = 1e-6
"""Similarities this close are the same text's."""


class Embedding:
    """Cross-entropy of each anchor's own positive among all positives and negatives of the step, in nats, summed over
    the anchors and over ``settings.dimensions``."""

    @classmethod
    def for_run(cls, run: RunInputs) -> Training:
        assert run.store and run.store.segments is not None
        settings = run.recipe.embedding or Settings()
        made = run.recipe.architecture
        width = hidden_size(run.base) if run.base else made.hidden if made else 0
        if too_long := [each for each in settings.dimensions or () if each > width]:
            raise ConfigError(
                f"embedding.dimensions has {too_long[0]}, and the model's embeddings have {width}",
                param="embedding.dimensions",
            )
        pooling = settings.pooling or pooling_of(run.base)
        has_negatives = bool((run.store.segments == 2).any())
        at_once = run.recipe.micro_batch
        objective = cls(pooling, settings, at_once, has_negatives)
        judged = held_out(held_rows(run), objective, objective)
        return Training(objective, rows_of(run), judged, whole_steps=True)

    def __init__(self, pooling: str, settings: Settings, at_once: int, has_negatives: bool) -> None:
        self.pooling, self.scale, self.dimensions = pooling, settings.scale, settings.dimensions
        self.at_once, self.has_negatives = at_once, has_negatives

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self._losses(model, batch)[:2]

    def predictions(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        loss, count, texts, valid = self._losses(model, batch)
        pairs = [nn.functional.normalize(each[valid], dim=-1).double() for each in texts[:2]]
        return loss, count, torch.cat([example_numbers(batch)[valid, None].double(), *pairs], 1)

    def score(self, predictions: NDArray[np.float64]) -> dict[str, float]:
        """``recall_at_1``: how often an anchor's own positive is nearest of all that were measured."""
        anchors, positives = np.split(predictions[:, 1:], 2, axis=1)
        similar = anchors @ positives.T  # (n, n)
        nearer = (similar > np.diag(similar)[:, None] + SAME).sum(1)
        return {"recall_at_1": float((nearer == 0).mean())}

    def _losses(
        self, model: nn.Module, batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """The sum, the number of anchors, the embeddings of each segment (rows, dim), and which rows count."""
        valid = batch["labels"][:, 0] != IGNORED
        ids = [_texts(batch, segment) for segment in range(3 if self.has_negatives else 2)]
        texts = [self._encode(model, *each) for each in ids]
        there = [valid, *(valid & each[1].any(1) for each in ids[1:])]  # a negative may lack
        keys = [_key(*each) for each in ids]
        candidates = [gathered(each) for each in texts[1:]]
        candidate_keys, candidate_there = (
            torch.cat([gathered(each) for each in lists[1:]]) for lists in (keys, there)
        )
        rows = len(valid)
        own = torch.arange(rows, device=valid.device) + first_row(rows)
        hidden = ~candidate_there[None] | (candidate_keys[None] == keys[1][:, None])
        asked = (
            gathered(keys[0])[None] == keys[0][:, None]
        )  # of an equal anchor, the positive is right as well
        hidden[:, : asked.shape[1]] |= asked
        hidden[torch.arange(rows, device=valid.device), own] = False
        total = torch.zeros((), device=valid.device)
        for dimensions in self.dimensions or (texts[0].shape[1],):
            ours = nn.functional.normalize(texts[0][:, :dimensions], dim=-1)
            theirs = nn.functional.normalize(torch.cat(candidates)[:, :dimensions], dim=-1)
            logits = (self.scale * ours @ theirs.t()).masked_fill(hidden, float("-inf"))
            total = total + nn.functional.cross_entropy(logits[valid], own[valid], reduction="sum")
        return total, valid.sum().float(), texts, valid

    def _encode(self, model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """Embeddings float32 (rows, dim), ``at_once`` rows at a time."""
        return in_chunks(partial(self._pooled, model), [ids, mask], self.at_once)

    def _pooled(self, model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        if self.pooling == "cls":
            return states[:, 0]
        weights = mask.float().unsqueeze(-1)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def _texts(batch: Mapping[str, Tensor], segment: int) -> tuple[Tensor, Tensor]:
    """The ids of one text of each row and where they are, (rows, longest of these) each; a text that lacks has none."""
    here = (batch["segments"] == segment) & (batch["document_ids"] >= 0)
    length = here.sum(1)
    longest = max(1, int(length.max()))
    place = torch.arange(longest, device=here.device)[None]
    mask = place < length[:, None]
    at = (here.int().argmax(1)[:, None] + place).clamp(max=here.shape[1] - 1)
    return batch["input_ids"].gather(1, at).masked_fill(~mask, 0), mask


def _key(ids: Tensor, mask: Tensor) -> Tensor:
    """A number for each text, int64 (rows,), equal for equal ones."""
    key = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
    for column, there in zip(ids.t(), mask.t(), strict=True):
        key = torch.where(there, key * 6364136223846793005 + column + 1442695040888963407, key)
    return key
