"""A smaller encoder taught by a larger one's embeddings, and by its last hidden states, of any text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.sentence_encoder import Encoder
from everlearn.errors import InvalidInput
from train.data.splitmix import splitmix64
from train.data.store import TokenStore
from train.objectives.table import ObjectiveSpec, register_objective

SHORTEST = 8
"""Tokens of a span, at least, with those that mark its ends."""


class Spans:
    """Stretches of a store's documents, long and short, as ``fit`` takes batches: each a function of its number.

    All of a batch are as long, from :data:`SHORTEST` tokens to a row's ``sequence_tokens`` and at most ``longest``, and
    together as many tokens as its rows have room for; so questions are seen as often as passages. ``before`` and
    ``after`` mark their ends. ``rows``: as many as the store fills. Raises InvalidInput for an empty one.
    """

    def __init__(
        self,
        store: TokenStore,
        sequence_tokens: int,
        longest: int,
        seed: int,
        before: list[int],
        after: list[int],
    ) -> None:
        if not len(store.tokens):
            raise InvalidInput("there is nothing to learn from: the data holds no text", param="data")
        self.store, self.sequence_tokens, self.seed = store, sequence_tokens, seed
        self.lengths = max(1, min(sequence_tokens, longest) - SHORTEST + 1)
        self.before, self.after, self.ends = before, after, {*before, *after}
        self.rows = max(1, len(store.tokens) // sequence_tokens)

    def batch(self, step: int, micro_batch: int, rank: int = 0, ranks: int = 1) -> dict[str, np.ndarray]:
        """int64 (spans, length) each: ``input_ids`` (also as ``labels``), and ``document_ids``, -1 in the padding."""
        random = splitmix64(np.array([self.seed], dtype=np.uint64)) + np.uint64(step * ranks + rank)
        length = SHORTEST + int(splitmix64(random)[0] % np.uint64(self.lengths))
        spans = max(1, micro_batch * self.sequence_tokens // length)
        at = splitmix64(splitmix64(random) + np.arange(1, spans + 1, dtype=np.uint64))
        ids = np.zeros((spans, length), dtype=np.int64)
        documents = np.full((spans, length), -1, dtype=np.int64)
        for line, place in enumerate((at % np.uint64(len(self.store.tokens))).astype(np.int64)):
            span = self._around(int(place), length)
            ids[line, : len(span)], documents[line, : len(span)] = span, line
        return {"input_ids": ids, "labels": ids.copy(), "document_ids": documents}

    def _around(self, place: int, length: int) -> list[int]:
        """At most ``length`` tokens of the document that holds this place, its marks among them."""
        number = int(np.searchsorted(self.store.offsets, place, side="right")) - 1
        start, stop = (int(one) for one in self.store.offsets[number : number + 2])
        text = [one for one in self.store.tokens[start:stop].tolist() if one not in self.ends]
        room = length - len(self.before) - len(self.after)
        first = max(0, min(place - start, len(text) - room))
        return [*self.before, *text[first : first + room], *self.after]


class EmbeddingDistillation:
    """Cosine distance from the teacher's embedding of each text, and ``hidden`` of the last states' distance.

    The states' distance is a token's squared distance over the target's square, the mean over the batch's tokens: it
    says of each token what the embedding says of all together. Returns the sum over texts, and how many they were.
    """

    def __init__(self, teacher: Encoder, hidden: float = 1.0) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.hidden = hidden

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        mask = batch["document_ids"] >= 0  # (texts, seq)
        given: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": mask.long()}
        with torch.no_grad():
            theirs = self.teacher.body(**given).last_hidden_state
        ours = model(**given).last_hidden_state  # (texts, seq, dim)
        loss = (1 - (self.teacher.pooled(ours, mask) * self.teacher.pooled(theirs, mask)).sum(-1)).sum()
        if self.hidden:
            distance = (ours - theirs)[mask].square().sum(-1) / theirs[mask].square().sum(-1)
            loss = loss + self.hidden * len(mask) * distance.mean()
        return loss, torch.tensor(len(mask), dtype=torch.float32, device=loss.device)


register_objective(
    ObjectiveSpec(
        "embedding-distillation",
        "compress.distill.encoder_objective:EmbeddingDistillation",
        "cosine distance from a teacher's embedding of each text, and the distance of the last hidden states",
        "sentence encoders with a teacher of the same tokenizer",
        batch=("input_ids", "labels", "document_ids"),
        task="embed",
        command="everlearn distill",
    )
)
