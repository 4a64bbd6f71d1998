"""Encoder-decoders: say the target, token by token, from the source and what was said (T5, arXiv 1910.10683)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everlearn.bundles.contents import read_json_object
from everlearn.errors import InvalidInput
from train.data.corruption.pairs import PairRows
from train.data.corruption.spans import SpanRows
from train.data.corruption.word_starts import Vocabulary, read_vocabulary
from train.data.packing import IGNORED
from train.data.tokenize import Tokens
from train.models.packed_inputs import encode_and_decode
from train.objectives.linear_loss import Smoothing, cross_entropies, linear_loss
from train.objectives.objective import HeldOut, RunInputs, Training


class Seq2Seq:
    """Cross-entropy of the target's tokens, in nats, summed over them; several pairs share a row and see nothing of
    each other."""

    @classmethod
    def for_run(cls, run: RunInputs) -> Training:
        """Pairs of the run's stores. Raises InvalidInput where they hold none, or their targets would not end."""
        refuse_without_end(run.tokenizer_dir)
        start, tokens = decoder_start(run), run.recipe.sequence_tokens
        assert run.store
        rows = PairRows(run.store, tokens, run.recipe.seed, start, run.mixture)
        held = HeldOut(PairRows(run.held_store, tokens, 0, start), cls()) if run.held_store else None
        return Training(cls(run.recipe.smoothing), rows, held)

    def __init__(self, smoothing: Smoothing | None = None) -> None:
        self.smoothing = smoothing

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        targets = batch["labels"].flatten()
        places = (targets != IGNORED).nonzero().squeeze(1)
        losses = cross_entropies(targets[places], self.smoothing)
        loss = linear_loss(*before_target_logits(model, batch), places, losses)
        return loss, torch.tensor(len(places), dtype=torch.float32, device=loss.device)


class SpanCorruption(Seq2Seq):
    """Its targets are the spans that are hidden in texts: 15% of each, three tokens long in the mean.

    Validation hides the same spans each time.
    """

    @classmethod
    def for_run(cls, run: RunInputs) -> Training:
        """Raises InvalidInput where the tokenizer has no sentinels."""
        vocabulary, tokens = read_vocabulary(run.tokenizer_dir), Tokens(run.tokenizer_dir)
        sentinels = refuse_without_sentinels(vocabulary, run.tokenizer_dir)
        around, start = (tokens.bos, tokens.eos), decoder_start(run)
        rows = SpanRows(run.packer.marked(*around), sentinels, start, run.recipe.seed)
        held = None
        if run.held_out:
            held = HeldOut(SpanRows(run.held_out.marked(*around), sentinels, start, seed=0), cls())
        return Training(cls(run.recipe.smoothing), rows, held)


def refuse_without_sentinels(vocabulary: Vocabulary, tokenizer_dir: Path) -> tuple[int, ...]:
    """The ids of <extra_id_0>, <extra_id_1>, … Raises InvalidInput where the tokenizer has none."""
    if not vocabulary.sentinels:
        raise InvalidInput(
            f"{tokenizer_dir / 'tokenizer.json'} has no sentinels (<extra_id_0>, <extra_id_1>, …): span-corruption needs "
            "T5's tokenizer, or architecture.tokenizer: unigram",
            param="objective",
        )
    return vocabulary.sentinels


def refuse_without_end(tokenizer_dir: Path) -> None:
    """Raises InvalidInput where the tokenizer has no token that ends a text, as WordPiece has none: no answer would end."""
    if not Tokens(tokenizer_dir).eos:
        raise InvalidInput(
            f"{tokenizer_dir / 'tokenizer.json'} has no token that ends a text, so no answer would end: seq2seq needs T5's "
            "tokenizer, or architecture.tokenizer: unigram",
            param="objective",
        )


def decoder_start(run: RunInputs) -> int:
    """What the decoder begins with, as config.json of the base says; of a model from scratch, T5's padding."""
    if run.base is None:
        return 0
    said = read_json_object(run.base / "config.json")
    start = said.get("decoder_start_token_id", said.get("pad_token_id"))
    return start if isinstance(start, int) else 0


def before_target_logits(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """As ``train.objectives.logits.before_logits``: hidden states (rows * target, hidden), weight and bias."""
    hidden, output = encode_and_decode(model, batch).flatten(0, 1), model.get_output_embeddings()
    if getattr(model.config, "scale_decoder_outputs", False):
        hidden = hidden * model.config.d_model**-0.5
    return hidden, output.weight, output.bias
