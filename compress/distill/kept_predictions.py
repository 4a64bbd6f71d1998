"""A teacher's predictions on disk: asked once, however many epochs and starts, and then out of memory.

Of each position half of what is kept are the likeliest tokens with their probabilities. The other half are drawn from
all others by the teacher's own probabilities and share what is left, so that a gradient is on average that of the
whole distribution; the likeliest alone would teach that nothing else can follow (arXiv 2503.16870).
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.distill.decoder_objective import with_text
from compress.export import refuse_full_disk
from everlearn.bundles.durable import write_file
from everlearn.errors import InvalidInput
from everlearn.progress import Progress
from train.data.packing import Packer
from train.objectives.causal import predicted
from train.objectives.linear_loss import chunks, linear_loss
from train.objectives.logits import before_logits, logits_at, vocabulary
from train.objectives.table import PACKED, ObjectiveSpec, register_objective

ROWS_AT_ONCE = 8
ROWS_BETWEEN_FLUSHES = 64


class KeptPredictions:
    """The batches of ``packer`` with what the teacher predicts there, from ``folder``.

    Each batch has three more: ``kept_ids`` int64 and ``kept_log_probs`` float32 (rows, sequence_tokens, kept), of
    the token that follows at ``temperature``; ``kept_entropy`` float32 (rows, sequence_tokens), nats of the whole
    distribution. Where nothing is to be predicted they are 0.
    """

    def __init__(
        self, packer: Packer, asked: int, folder: Path, kept: int, vocab: int, identity: Mapping[str, Any]
    ) -> None:
        """Of the first ``asked`` rows that are read, at most an epoch's; of the first ``vocab`` ids.

        ``identity``: what else determines the predictions; those of another one in ``folder`` are replaced. Raises
        InvalidInput where more are to be kept than there are tokens, Unavailable where the disk has too little room.
        """
        if kept >= vocab:
            raise InvalidInput(
                f"keep_predictions is {kept}, and this model has {vocab} tokens: a few dozen will do",
                param="keep_predictions",
            )
        self.packer, self.rows = packer, packer.rows
        self.kept, self.vocab = kept, vocab
        self.numbers = packer.row_numbers(0, min(asked, packer.rows))
        self._line = np.full(packer.rows, -1)
        self._line[self.numbers] = np.arange(len(self.numbers))
        shape = (len(self.numbers), packer.sequence_tokens)
        layout = {
            "ids": (np.uint16 if vocab <= 2**16 else np.uint32, (*shape, kept)),
            "log_probs": (np.float16, (*shape, kept)),
            "entropy": (np.float32, shape),
        }
        self._identity = {**identity, "kept": kept, "vocab": vocab, "rows": packer.rows, "shape": shape}
        self._state = folder / "kept.json"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._read().get("identity") != json.loads(json.dumps(self._identity))
        if fresh:
            shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
            refuse_full_disk(folder, sum(bytes_of(*one) for one in layout.values()))
        self._arrays = {name: array_in(folder / f"{name}.npy", *one) for name, one in layout.items()}
        if fresh:
            self._write(0)

    @property
    def done(self) -> int:
        """Rows that the teacher was asked of."""
        return self._read()["done"]

    def ask(self, teacher: nn.Module, temperature: float, precision: torch.dtype, progress: Progress) -> None:
        """Asks ``teacher`` of the rows that it was not asked of before."""
        device = next(teacher.parameters()).device
        for start in range(self.done, len(self.numbers), ROWS_AT_ONCE):
            progress("asking the teacher", start / len(self.numbers))
            torch.manual_seed(start)
            with torch.no_grad(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
                self._ask(teacher, start, temperature, device)
            if (start + ROWS_AT_ONCE) % ROWS_BETWEEN_FLUSHES == 0:
                self._write(start + ROWS_AT_ONCE)
        self._write(len(self.numbers))

    def _ask(self, teacher: nn.Module, start: int, temperature: float, device: torch.device) -> None:
        rows = self.packer.rows_of(self.numbers[start : start + ROWS_AT_ONCE])
        batch = {name: torch.as_tensor(one).to(device) for name, one in rows.items()}
        _, places = predicted(batch["labels"])
        logits = logits_at(teacher, batch, places)
        for chunk in chunks(len(places), vocabulary(teacher)):
            line, column = np.divmod(places[chunk].cpu().numpy(), self.packer.sequence_tokens)
            log_probs = torch.log_softmax(logits(chunk)[:, : self.vocab] / temperature, -1)
            found = thinned(log_probs, self.kept)
            for array, values in zip(self._arrays.values(), found, strict=True):
                array[start + line, column] = values.cpu().numpy()

    def batch(self, step: int, micro_batch: int, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
        """As the packer's, with the predictions."""
        numbers = self.packer.row_numbers(step, micro_batch, rank, ranks)
        lines = self._line[numbers]
        return {
            **self.packer.rows_of(numbers),
            "kept_ids": self._arrays["ids"][lines].astype(np.int64),
            "kept_log_probs": self._arrays["log_probs"][lines].astype(np.float32),
            "kept_entropy": self._arrays["entropy"][lines],
        }

    def _read(self) -> dict[str, Any]:
        return json.loads(self._state.read_bytes()) if self._state.exists() else {}

    def _write(self, done: int) -> None:
        """What was asked is on disk before it counts."""
        for array in self._arrays.values():
            array.flush()
        write_file(self._state, json.dumps({"identity": self._identity, "done": done}).encode())


def bytes_of(dtype: type[np.generic], shape: tuple[int, ...]) -> int:
    """What an array takes."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def array_in(file: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """An array in a file, made where there is none. Its room is taken at once: a map's write cannot fail."""
    if not file.exists():
        array = np.lib.format.open_memmap(file, "w+", dtype, shape)
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        return array
    return np.lib.format.open_memmap(file, "r+")


def thinned(log_probs: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is kept of distributions (n, vocab): ids and log-probabilities (n, kept), and their entropies (n,).

    The drawn half's probabilities are equal parts of what the likeliest half leaves. They are drawn evenly along
    the sum of the others' probabilities, from one random place on (systematic sampling), so that each is drawn as
    often as its share says, but for one.
    """
    likely = log_probs.topk(kept - kept // 2, -1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    if kept < 2:
        return likely.indices, likely.values, entropy
    drawn = kept // 2
    reached = log_probs.exp().scatter_(-1, likely.indices, 0).cumsum(-1)  # (n, vocab)
    left = reached[:, -1:]
    places = (torch.arange(drawn, device=left.device) + torch.rand_like(left)) / drawn * left
    ids = torch.searchsorted(reached, places, right=True).clamp_(max=log_probs.shape[-1] - 1)
    share = (left / drawn).log().expand(ids.shape)
    return torch.cat([likely.indices, ids], -1), torch.cat([likely.values, share], -1), entropy


class KeptDistillation:
    """``weight`` of KL(teacher || student) by what was kept, the rest cross-entropy of the text.

    As :class:`compress.distill.decoder_objective.Distillation` with ``divergence: forward``, on batches of :class:`KeptPredictions`.
    """

    def __init__(self, kept: KeptPredictions, temperature: float, weight: float) -> None:
        self.vocab = kept.vocab
        self.temperature = temperature
        self.weight = weight

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        following, places = predicted(batch["labels"])
        targets = following[places]
        ids, log_probs, entropy = (
            batch[name].flatten(0, 1)[places] for name in ("kept_ids", "kept_log_probs", "kept_entropy")
        )
        loss = linear_loss(
            *before_logits(model, batch),
            places,
            lambda chunk, logits: self.loss_and_grad(logits, ids[chunk], log_probs[chunk], targets[chunk]),
        )
        loss = loss - self.weight * self.temperature**2 * entropy.sum()
        return loss, torch.tensor(len(places), dtype=torch.float32, device=loss.device)

    def loss_and_grad(
        self, logits: Tensor, ids: Tensor, log_probs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropies, and its derivative by logits (n, vocab). ids, log_probs: (n, kept)."""
        theirs = torch.softmax(log_probs, -1)  # what float16 rounded adds up to one again
        ours = torch.log_softmax(logits[:, : self.vocab] / self.temperature, -1)
        loss = -(theirs * ours.gather(-1, ids)).sum()
        grad = ours.exp_().scatter_add_(-1, ids, -theirs)
        return with_text((loss, grad), self.temperature, self.weight, logits, targets)


register_objective(
    ObjectiveSpec(
        "kept-distillation",
        "compress.distill.kept_predictions:KeptDistillation",
        "as distillation, from predictions that the teacher made once and a file keeps",
        "decoders with a teacher of the same tokenizer",
        batch=(*PACKED, "kept_ids", "kept_log_probs", "kept_entropy"),
        command="everlearn distill",
    )
)
