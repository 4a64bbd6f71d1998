"""Pairs of images and texts to batches, so that any batch is a pure function of its number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from everlearn.errors import InvalidInput
from train.data.augmenting.options import Augment
from train.data.augmenting.pictures import augmented, kept_tokens
from train.data.labelled.rows import PADDING, LabelledRows
from train.data.mixing.mixed_rows import MixedRows, Mixture
from train.data.splitmix import shuffled
from train.data.store import TokenStore


class ImageTextBatch(TypedDict):
    """``images``: uint8 (rows, size, size, 3). ``keys``: int64 (rows, 2), equal where images, or texts, are equal. The rest
    as in ``train.data.labelled.rows.LabelledBatch``: ``labels`` is -100 at the first token of a row that does not count.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    document_ids: NDArray[np.int64]
    images: NDArray[np.uint8]
    keys: NDArray[np.int64]


class ImageTextRows:
    """A store of pairs as ``fit`` takes batches. ``rows``: the pairs. ``seed`` None keeps the store's order.

    ``augment``: how images of a batch may look otherwise than the store's, each time in another way.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        seed: int | None = 0,
        padding_id: int = 0,
        augment: Augment | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        if store.images is None:
            raise InvalidInput("the store holds no images", param="data.store")
        self._texts, self._images = LabelledRows(store, seed=None, padding_id=padding_id), store.images
        self.rows, self.tokens, self.seed = self._texts.rows, self._texts.tokens, seed
        self._augment = augment
        self.mixed = MixedRows(mixture, mixture.sizes, self._texts.lengths, seed or 0) if mixture else None
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def batch(self, step: int, micro_batch: int, rank: int = 0, ranks: int = 1) -> ImageTextBatch:
        """Pairs ``(step * ranks + rank) * micro_batch`` and following of the endless sequence of epochs."""
        if not 0 <= rank < ranks or step < 0 or micro_batch < 1:
            raise ValueError(f"no batch at step {step} for rank {rank} of {ranks}, micro batch {micro_batch}")
        first = (step * ranks + rank) * micro_batch
        numbers = range(first, first + micro_batch)
        batch = self.rows_of([self._pair(number) for number in numbers])
        if self._augment and self.seed is not None:
            self._change(batch, numbers, self._augment, self.seed)
        return batch

    def _change(self, batch: ImageTextBatch, numbers: Sequence[int], chosen: Augment, seed: int) -> None:
        """The keys stay: they say what is the same in the store."""
        looks = zip(batch["images"], numbers, strict=True)
        batch["images"] = np.stack([augmented(image, number, chosen, seed) for image, number in looks])
        if not chosen.words:
            return
        empty = {"input_ids": self._texts.padding_id, "document_ids": PADDING}
        for row, number in enumerate(numbers):
            length = int((batch["document_ids"][row] != PADDING).sum())
            keep = kept_tokens(length, number, chosen, seed)
            for name, nothing in empty.items():
                kept = batch[name][row, :length][keep]
                batch[name][row] = nothing
                batch[name][row, : len(kept)] = kept

    def rows_of(self, numbers: Sequence[int]) -> ImageTextBatch:
        """The pairs with these numbers."""
        texts, images = self._texts.rows_of(numbers), np.stack([self._images[number] for number in numbers])
        ids = (row[place >= 0] for row, place in zip(texts["input_ids"], texts["document_ids"], strict=True))
        keys = [[_key(image), _key(row)] for image, row in zip(images, ids, strict=True)]
        return ImageTextBatch(
            input_ids=texts["input_ids"],
            labels=texts["labels"],
            document_ids=texts["document_ids"],
            images=images,
            keys=np.array(keys, dtype=np.int64),
        )

    def _pair(self, number: int) -> int:
        if self.mixed:
            return self.mixed.row(number)
        epoch, position = divmod(number, self.rows)
        if self.seed is None:
            return position
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, shuffled(self.rows, self.seed, epoch))
        return int(self._order[1][position])


def _key(values: NDArray[np.generic]) -> int:
    """48 bits of a hash: such a number is exact in float64, too."""
    return int.from_bytes(hashlib.blake2b(values.tobytes(), digest_size=6).digest(), "little")
