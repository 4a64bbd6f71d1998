"""The two towers of a model of images and texts in PyTorch, and how near another one's embeddings are to theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.sentence_encoder import probe_texts, truncating_tokenizer
from train.data.labelled.image_rows import ImageTextRows
from train.data.store import open_store
from train.models.load import load_model
from train.objectives.contrastive import ranked

PROBES = 32
"""Images that embeddings are compared on where no pairs are given."""
MOST_PAIRS = 1024
"""Of the given ones; half of them calibrate, the others are measured."""
BATCH = 16

Embed = Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float32]]
"""From a tower's inputs to unit vectors, float32 (batch, dim)."""


class Tower(nn.Module):
    """``body`` with its projection. ``inputs``: their names, and ``output``, as transformers and optimum have them.

    ``rounded``: see :class:`compress.quantize.smooth_encoder.Smoothable`; the projection, which is small, keeps all bits.
    """

    rounded = ""

    def __init__(
        self, body: Any, projection: nn.Linear, inputs: Mapping[str, Mapping[int, str]], output: str
    ) -> None:
        super().__init__()
        self.body, self.projection, self.inputs, self.output = body, projection, inputs, output

    def forward(self, *tensors: Tensor) -> Tensor:
        """Returns float32 (batch, dim), unit length."""
        pooled = self.body(**dict(zip(self.inputs, tensors, strict=True))).pooler_output
        return nn.functional.normalize(self.projection(pooled), dim=-1)

    @torch.inference_mode()
    def embed(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """An :data:`Embed`."""
        return self(*(torch.from_numpy(feeds[name]) for name in self.inputs)).numpy()


def load_towers(model_dir: Path) -> tuple[Tower, Tower]:
    """For texts, int64 (batch, seq) twice, and for images, float32 (batch, 3, size, size); float32, on the CPU.

    Raises InvalidInput naming a tensor that is missing, misshapen or left over.
    """
    model = load_model(model_dir, "image_text")
    free = {0: "batch", 1: "seq"}
    texts = {"input_ids": free, "attention_mask": free}
    return (
        Tower(model.text_model, model.text_projection, texts, "text_embeds").eval(),
        Tower(
            model.vision_model, model.visual_projection, {"pixel_values": {0: "batch"}}, "image_embeds"
        ).eval(),
    )


@dataclass(frozen=True)
class Pairs:
    """Texts' ids, and images as uint8 (n, size, size, 3). ``keys``: int64 (n, 2), equal where images, or texts, are equal;
    None where the two do not belong together."""

    texts: list[list[int]]
    images: NDArray[np.uint8]
    keys: NDArray[np.int64] | None = None

    def part(self, which: slice) -> Pairs:
        return Pairs(
            self.texts[which], self.images[which], self.keys if self.keys is None else self.keys[which]
        )


def stored_pairs(store_dir: Path, seed: int) -> Pairs | None:
    """At most MOST_PAIRS of a store that ``train.data`` prepared, chosen by ``seed``; None where it holds no images."""
    store = open_store(store_dir)
    if store.images is None:
        return None
    rows = ImageTextRows(store, seed=None)
    numbers = np.sort(np.random.default_rng(seed).permutation(rows.rows)[:MOST_PAIRS])
    batch = rows.rows_of([int(one) for one in numbers])
    places = batch["document_ids"] >= 0
    texts = [ids[place].tolist() for ids, place in zip(batch["input_ids"], places, strict=True)]
    return Pairs(texts, batch["images"], batch["keys"])


def probe_pairs(model_dir: Path, size: int) -> Pairs:
    """Pieces of the held-out text, and images that are none of anything: forms on grounds that change softly."""
    tokenizer = truncating_tokenizer(model_dir)
    texts = [tokenizer.encode(text).ids for text in probe_texts()]
    return Pairs(texts, np.stack([drawn(number, size) for number in range(2 * PROBES)]))


def drawn(number: int, size: int) -> NDArray[np.uint8]:
    """The image of that number; uint8 (size, size, 3)."""
    from PIL import Image, ImageDraw

    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    image = coarse.resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(1 + number % 4):
        low = random.integers(0, size // 2, 2)
        high = low + random.integers(size // 8 + 1, size // 2 + 1, 2)
        colour = tuple(int(one) for one in random.integers(0, 256, 3))
        box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        (draw.ellipse if random.random() < 0.5 else draw.rectangle)(box, fill=colour)
    return np.asarray(image, dtype=np.uint8)


def text_feeds(texts: list[list[int]]) -> list[dict[str, NDArray[np.int64]]]:
    """In padded batches as an engine sends them: int64 (batch, seq) each."""
    feeds: list[dict[str, NDArray[np.int64]]] = []
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        longest = max(map(len, some))
        ids, mask = (np.zeros((len(some), longest), np.int64) for _ in range(2))
        for row, text in enumerate(some):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        feeds.append({"input_ids": ids, "attention_mask": mask})
    return feeds


def image_feeds(images: NDArray[np.uint8], mean: Any, std: Any) -> list[dict[str, NDArray[np.float32]]]:
    """float32 (batch, 3, size, size) each; ``mean`` and ``std`` of red, green and blue."""
    feeds: list[dict[str, NDArray[np.float32]]] = []
    for start in range(0, len(images), BATCH):
        scaled = images[start : start + BATCH].astype(np.float32) / 255
        values = ((scaled - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)
        feeds.append({"pixel_values": np.ascontiguousarray(values, np.float32)})
    return feeds


def embedded(embed: Embed, feeds: list[Any]) -> NDArray[np.float32]:
    """Of all batches: float32 (n, dim)."""
    return np.concatenate([embed(one) for one in feeds])


def compare_embeddings(
    ours: tuple[NDArray[np.float32], NDArray[np.float32]],
    theirs: tuple[NDArray[np.float32], NDArray[np.float32]],
    keys: NDArray[np.int64] | None,
) -> dict[str, Any]:
    """How near ours are to theirs, of texts and of images, float32 (n, dim) each: cosines; with ``keys``, the recall at
    1 among the pairs, both ways, of theirs (``…_before``) and of ours."""
    cosines = [(our * their).sum(-1) for our, their in zip(ours, theirs, strict=True)]
    every = np.concatenate(cosines)
    figures: dict[str, Any] = {
        "cosine_mean": round(float(every.mean()), 5),
        "cosine_min": round(float(every.min()), 5),
        "texts": len(cosines[0]),
        "images": len(cosines[1]),
    }
    if keys is None:
        return figures
    for suffix, (texts, images) in (("_before", theirs), ("", ours)):
        for name, asked, answers in (("image_to_text", images, texts), ("text_to_image", texts, images)):
            found = ranked(asked, answers, keys.astype(np.float64)) < 1
            figures[f"{name}_recall_at_1{suffix}"] = round(float(found.mean()), 4)
    return figures
