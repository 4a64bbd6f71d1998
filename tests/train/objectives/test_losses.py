"""What recipes may add to a loss, which weights decay, experts that are kept busy, and bits per byte."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from tests.support.tiny_models import write_llama
from tests.train.objectives.conftest import Make
from train.data.packing import Packer
from train.data.store import Example
from train.evaluate.bits_per_byte import bits_per_byte, bytes_per_target, token_bytes
from train.evaluate.held_out_text import held_out_text
from train.loop import fit
from train.models.build import build_model, refuse_misfit
from train.models.expert_balance import BIAS, ExpertBalance
from train.models.load import load_causal_lm
from train.models.save import write_model
from train.objectives.causal import CausalLM
from train.objectives.linear_loss import cross_entropies, linear_loss
from train.optim import adamw
from train.recipe import FitOptions, Optimizer, Smoothing, TrainRecipe, deciding


def test_label_smoothing_is_of_the_rows_that_count_alone() -> None:
    """As torch means it, which counts the others in its mean (pytorch#73205); with its gradient, and z-loss."""
    drawn = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 30, generator=drawn, requires_grad=True)
    targets = torch.randint(0, 30, (12,), generator=drawn)
    rows = torch.tensor([0, 3, 4, 9])
    loss = linear_loss(logits, None, None, rows, cross_entropies(targets[rows], Smoothing(0.2, 0.01)))
    loss.backward()
    ours, logits.grad = logits.grad, None
    theirs = nn.functional.cross_entropy(logits[rows], targets[rows], label_smoothing=0.2, reduction="sum")
    (theirs + 0.01 * (torch.logsumexp(logits[rows], -1) ** 2).sum()).backward()
    torch.testing.assert_close(ours, logits.grad)
    assert not ours[[1, 2, 5]].any()
    plain = linear_loss(logits, None, None, rows, cross_entropies(targets[rows], Smoothing()))
    assert torch.equal(plain, linear_loss(logits, None, None, rows, cross_entropies(targets[rows])))


class OwnNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))


class Odd(nn.Module):
    """Norms and biases by names of their own (transformers#35927)."""

    def __init__(self) -> None:
        super().__init__()
        self.my_rms, self.layer_norm, self.out = OwnNorm(), nn.LayerNorm(8), nn.Linear(8, 8)


def test_nothing_below_two_dimensions_decays_whatever_its_name(make: Make) -> None:
    for model in (Odd(), make("t5"), make("modernbert"), make("deepseek")):
        decayed, spared = adamw(model, Optimizer(weight_decay=0.5)).param_groups
        assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)
        assert all(p.ndim >= 2 for p in decayed["params"]) and all(p.ndim < 2 for p in spared["params"])
        assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_linear_layers_begin_as_the_recipe_says_and_ties_stay(make: Make) -> None:
    hidden, ffn = 32, 128
    for init, deviation in (
        ("xavier", math.sqrt(2 / (hidden + ffn))),
        ("he", math.sqrt(2 / hidden)),
        ("family", 0.02),
    ):
        model = make("gpt-neox", init=init)
        weight = model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight
        assert float(weight.detach().std()) == pytest.approx(deviation, rel=0.05)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert float(model.get_input_embeddings().weight.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_dropout_is_everywhere_what_the_recipe_says(make: Make) -> None:
    for family in ("bert", "t5", "gpt2", "modernbert"):
        for asked in (0.0, 0.3):
            rates = {module.p for module in make(family, asked).modules() if isinstance(module, nn.Dropout)}
            assert rates <= {asked}, family
    assert {module.p for module in make("bert", None).modules() if isinstance(module, nn.Dropout)} == {0.1}


def test_a_recipe_without_the_later_keys_is_the_run_that_it_was(recipe: dict[str, Any]) -> None:
    sizes = {"layers": 1, "hidden": 16, "heads": 2}
    now = TrainRecipe.model_validate(recipe | {"architecture": sizes}).model_dump(mode="json")
    later = {"family", "init", "experts", "tokenizer"}
    then = {key: value for key, value in now.items() if key not in ("dropout", "label_smoothing", "z_loss")}
    then["architecture"] = {key: value for key, value in now["architecture"].items() if key not in later}
    assert deciding(then) == deciding(now)
    other = TrainRecipe.model_validate(recipe | {"architecture": sizes | {"family": "gpt2"}, "z_loss": 0.1})
    assert deciding(other.model_dump(mode="json")).keys() - deciding(now).keys() == {
        "architecture.family",
        "z_loss",
    }


@pytest.fixture
def packer() -> Packer:
    drawn = np.random.default_rng(0)
    ids = [drawn.integers(3, 60, 48).astype(np.int32) for _ in range(40)]
    return Packer([Example(one, np.ones(48, np.bool_)) for one in ids], 48, 0)


def test_experts_are_kept_busy_alike_and_a_run_that_stopped_goes_on_with_the_same_bits(
    make: Make, packer: Packer, tmp_path: Path
) -> None:
    options = FitOptions(
        sequence_tokens=48, batch_tokens=192, steps=12, optimizer=Optimizer(lr=1e-3), dtype="float32"
    )

    def trained(rate: float, folder: str, stop_at: int | None = None) -> tuple[Any, list[float]]:
        model = make("deepseek", experts={"count": 4, "per_token": 1})
        router = model.model.layers[1].mlp.gate
        with torch.no_grad():
            getattr(router, BIAS)[0] += 0.02  # one expert gets too much
        shares: list[float] = []
        router.register_forward_hook(
            lambda _, __, out: shares.append(
                float((torch.bincount(out[2].flatten(), minlength=4) / out[2].numel()).max())
            )
        )
        done: list[int] = []
        fit(model, CausalLM(), packer, options, run_dir=tmp_path / folder, after_update=ExpertBalance(model, rate).step,
            on_step=lambda report: done.append(report.step), should_stop=lambda: len(done) + 1 == stop_at)  # fmt: skip
        return model, shares

    torch.set_num_threads(1)
    left, unbalanced = trained(0.0, "left")
    kept, balanced = trained(0.01, "kept")
    assert sum(balanced[-3:]) < sum(unbalanced[-3:]) - 0.3, (balanced, unbalanced)
    trained(0.01, "again", stop_at=5)
    again, _ = trained(0.01, "again")
    assert all(
        torch.equal(one, other)
        for one, other in zip(kept.state_dict().values(), again.state_dict().values(), strict=True)
    )
    bias = getattr(kept.model.layers[1].mlp.gate, BIAS)
    assert not torch.equal(bias, getattr(left.model.layers[1].mlp.gate, BIAS))
    kept.save_pretrained(tmp_path / "saved")
    stored = type(kept).from_pretrained(tmp_path / "saved")
    assert torch.equal(getattr(stored.model.layers[1].mlp.gate, BIAS), bias), "a bundle holds it"


def test_bits_per_byte_counts_the_bytes_of_the_text(tokenizers: dict[str, Path]) -> None:
    text = held_out_text().text[:3000] + " 学习 é\n"
    sizes = token_bytes(tokenizers["bpe"])
    assert sizes is not None
    ids = Tokenizer.from_file(str(tokenizers["bpe"] / "tokenizer.json")).encode(text).ids
    assert sizes[ids].sum() == len(text.encode())
    assert token_bytes(tokenizers["wordpiece"]) is None and token_bytes(tokenizers["unigram"]) is None
    example = Example(np.array([1, *ids], np.int32), np.ones(len(ids) + 1, np.bool_))
    each = bytes_per_target(Packer([example], len(ids) + 1, 0), 1, sizes)
    assert each == pytest.approx(len(text.encode()) / len(ids))
    assert bits_per_byte(math.log(256) * each, each) == pytest.approx(8), "all bytes alike"


def test_a_padded_vocabulary_stays_as_large_as_it_is(tmp_path: Path, recipe: dict[str, Any]) -> None:
    """Rows without a token (transformers#32852) are kept, in training and in what is written."""
    write_llama(tmp_path / "base")
    padded = load_causal_lm(tmp_path / "base")
    padded.resize_token_embeddings(576)
    padded.save_pretrained(tmp_path / "base")
    wanted = TrainRecipe.model_validate(recipe | {"base": "it"})
    model = build_model(wanted, tmp_path / "base", tmp_path / "base")
    refuse_misfit(model, wanted, 512)
    write_model(model, None, wanted, tmp_path / "base", tmp_path / "base", tmp_path / "model")
    again = load_causal_lm(tmp_path / "model")
    assert again.config.vocab_size == again.get_input_embeddings().num_embeddings == 576
    assert torch.equal(again.get_input_embeddings().weight, padded.get_input_embeddings().weight)
