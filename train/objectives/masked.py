"""Masked language modeling: say the hidden words from those on both sides (BERT, arXiv 1810.04805)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from train.data.corruption.masking import MaskedRows
from train.data.corruption.word_starts import read_vocabulary, refuse_without_mask
from train.data.packing import IGNORED
from train.data.tokenize import marks
from train.models.packed_inputs import encoder_inputs
from train.objectives.linear_loss import Smoothing, cross_entropies, linear_loss
from train.objectives.objective import HeldOut, RunInputs, Training


class MaskedLM:
    """Cross-entropy of the hidden tokens, in nats, summed over them.

    Rows hold whole texts between the tokenizer's own marks ([CLS] and [SEP]). Validation hides the same words each time.
    """

    @classmethod
    def for_run(cls, run: RunInputs) -> Training:
        """Raises InvalidInput where the tokenizer has no token to hide others with."""
        vocabulary = read_vocabulary(run.tokenizer_dir)
        mask = refuse_without_mask(vocabulary, run.tokenizer_dir)
        around = marks(run.tokenizer_dir)
        packer = run.packer.marked(*around)
        rows = MaskedRows(packer, vocabulary, mask, run.recipe.seed)
        held = None
        if run.held_out:
            held = HeldOut(MaskedRows(run.held_out.marked(*around), vocabulary, mask, seed=0), cls())
        counted = {"texts_without_words": packer.pieces_of(vocabulary.special)}
        return Training(cls(run.recipe.smoothing), rows, held, metrics=counted)

    def __init__(self, smoothing: Smoothing | None = None) -> None:
        self.smoothing = smoothing

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        targets = batch["labels"].flatten()
        places = (targets != IGNORED).nonzero().squeeze(1)
        hidden, weight, bias = before_masked_logits(model, batch, places)
        rows = torch.arange(len(places), device=places.device)
        loss = linear_loss(hidden, weight, bias, rows, cross_entropies(targets[places], self.smoothing))
        return loss, torch.tensor(len(places), dtype=torch.float32, device=loss.device)


Head = tuple[Callable[[Tensor], Tensor], nn.Linear]

HEADS: Mapping[str, Callable[[Any], Head]] = {
    "bert": lambda model: (model.cls.predictions.transform, model.cls.predictions.decoder),
    "roberta": lambda model: (_roberta(model.lm_head), model.lm_head.decoder),
    "xlm-roberta": lambda model: (_roberta(model.lm_head), model.lm_head.decoder),
    "distilbert": lambda model: (_distilbert(model), model.vocab_projector),
    "modernbert": lambda model: (model.head, model.decoder),
}
"""By model type, what a masked language model does between its last hidden states and its logits."""


def before_masked_logits(
    model: Any, batch: Mapping[str, Tensor], places: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As ``train.objectives.logits.before_logits``, at ``places``, int64 (n,), alone: the head is applied to no other."""
    inputs = encoder_inputs(model, batch)
    if head := HEADS.get(model.config.model_type):
        transform, output = head(model)
        hidden = model.base_model(**inputs).last_hidden_state.flatten(0, 1)
        return transform(hidden[places]), output.weight, output.bias
    return model(**inputs).logits.flatten(0, 1)[places], None, None


def _roberta(head: Any) -> Callable[[Tensor], Tensor]:
    return lambda hidden: head.layer_norm(nn.functional.gelu(head.dense(hidden)))


def _distilbert(model: Any) -> Callable[[Tensor], Tensor]:
    return lambda hidden: model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
