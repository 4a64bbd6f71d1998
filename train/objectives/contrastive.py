"""Contrastive learning of images and texts: each image finds its text among those of the step, and each text its image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.data.labelled.image_rows import ImageTextRows
from train.models.image_text import MEAN, STD, bound_temperature
from train.objectives.objective import HeldOut, RunInputs, Training
from train.objectives.whole_batch import first_row, gathered, in_chunks

IGNORED = -100
RECALLS = (1, 5)


class Contrastive:
    """The symmetric InfoNCE of CLIP (arXiv 2103.00020) over the whole step's pairs, in nats per pair, whatever
    ``micro_batch`` (how many pass through the towers at once) and however many ranks there are.

    Pairs with the same image or the same text are not told apart: they are no wrong answers to each other.
    """

    @classmethod
    def for_run(cls, run: RunInputs) -> Training:
        assert run.store
        objective = cls(run.recipe.micro_batch)
        chosen = run.recipe.contrastive
        rows = ImageTextRows(
            run.store,
            seed=run.recipe.seed,
            augment=chosen and chosen.augment,
            mixture=run.mixture,
        )
        return Training(objective, rows, objective.held_out(run), whole_steps=True)

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch

    def held_out(self, run: RunInputs) -> HeldOut | None:
        """Measured by the loss among the pairs of a step, and by recall among all."""
        if not run.held_store:
            return None
        rows = ImageTextRows(run.held_store, seed=None)
        return HeldOut(rows, self, RecallJudge(self), max(1.0, rows.tokens / rows.rows))

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.compared(model, batch)[:2]

    def compared(self, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss and pairs, float32 () each, and the features of images and texts, float32 (rows, projection) each."""
        bound_temperature(model)
        images, texts = features(model, batch, self.micro_batch)
        with torch.autocast(images.device.type, enabled=False):
            loss, count = symmetric_loss(
                images, texts, model.logit_scale.exp(), batch["keys"], batch["labels"][:, 0] != IGNORED
            )
        return loss, count, images, texts


def features(model: Any, batch: Mapping[str, Tensor], micro_batch: int) -> tuple[Tensor, Tensor]:
    """Of length 1 in the space that both share, float32 (rows, projection) each."""

    def of_images(images: Tensor) -> Tensor:
        return unit(model.get_image_features(pixel_values(images)).pooler_output)

    def of_texts(ids: Tensor, mask: Tensor) -> Tensor:
        return unit(model.get_text_features(ids, mask).pooler_output)

    mask = (batch["document_ids"] >= 0).long()
    images = in_chunks(of_images, [batch["images"]], micro_batch)
    return images, in_chunks(of_texts, [batch["input_ids"], mask], micro_batch)


def unit(features: Tensor) -> Tensor:
    return nn.functional.normalize(features.float(), dim=-1)


def pixel_values(images: Tensor) -> Tensor:
    """uint8 (rows, size, size, 3) to float32 (rows, 3, size, size), as CLIPImageProcessor does."""
    scaled = images.float() / 255
    made = (scaled - torch.tensor(MEAN, device=images.device)) / torch.tensor(STD, device=images.device)
    return made.permute(0, 3, 1, 2)


def symmetric_loss(
    images: Tensor, texts: Tensor, scale: Tensor, keys: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """This rank's share of the sum over all pairs of the step, and its pairs.

    images, texts: (rows, projection), of length 1. keys: int64 (rows, 2), see ``ImageTextBatch``. counts: bool (rows,).
    """
    columns, all_counts = gathered(keys), gathered(counts.long()) > 0
    mine = torch.arange(len(keys), device=keys.device)
    same = (keys[:, None] == columns[None]).any(-1) | ~all_counts[None]  # (rows, all)
    same[mine, first_row(len(keys)) + mine] = False
    right = first_row(len(keys)) + mine[counts]
    total = images.new_zeros(())
    for asked, answers in ((images, gathered(texts)), (texts, gathered(images))):
        logits = (scale * asked @ answers.T).masked_fill(same, -torch.inf)  # (rows, all)
        total = total + nn.functional.cross_entropy(logits[counts], right, reduction="sum") / 2
    return total, counts.sum().float()


class RecallJudge:
    """Recall at 1 and 5 among all held-out pairs: how often what belongs to an image is among the first of its texts,
    and the other way round. What has the same image, or the same text, belongs to it too; a tie counts against it."""

    def __init__(self, objective: Contrastive) -> None:
        self.objective = objective

    def predictions(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        loss, count, images, texts = self.objective.compared(model, batch)
        keep = batch["labels"][:, 0] != IGNORED
        columns = [batch["document_ids"][:, :1], batch["keys"], images, texts]
        return loss, count, torch.cat([each.double() for each in columns], 1)[keep]

    def score(self, predictions: NDArray[np.float64]) -> dict[str, float]:
        said = predictions[np.argsort(predictions[:, 0], kind="stable")]
        keys, (images, texts) = said[:, 1:3], np.split(said[:, 3:].astype(np.float32), 2, axis=1)
        figures: dict[str, float] = {}
        for name, asked, answers in (("image_to_text", images, texts), ("text_to_image", texts, images)):
            ranks = ranked(asked, answers, keys)
            figures |= {f"{name}_recall_at_{most}": float((ranks < most).mean()) for most in RECALLS}
        return figures


def ranked(
    asked: NDArray[np.float32], answers: NDArray[np.float32], keys: NDArray[np.float64]
) -> NDArray[np.int64]:
    """How many answers that do not belong to it each one finds before the best that does, int64 (n,)."""
    ranks = np.empty(len(asked), dtype=np.int64)
    for at in range(0, len(asked), 1024):
        part = slice(at, at + 1024)
        scores = asked[part] @ answers.T  # (part, n)
        belong = (keys[part, None] == keys[None]).any(-1)
        best = np.where(belong, scores, -np.inf).max(1, keepdims=True)
        ranks[part] = ((scores >= best) & ~belong).sum(1)
    return ranks
