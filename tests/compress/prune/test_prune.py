"""What goes is what is missed least, and a wrong wish says so."""

from __future__ import annotations

from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from compress.prune.layers import block_influence, least_missed, with_layers
from compress.prune.prune_decoder import pruned
from compress.prune.sparsity import share_of_zeros, zero_smallest
from compress.prune.width import narrow_attention, narrow_ffn
from compress.quantize.calibration import calibration_windows
from compress.recipe import Calibration, Prune
from everlearn.errors import InvalidInput
from everlearn.progress import silent
from tests.support.tiny_models import tiny_config
from train.models.load import load_causal_lm


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Four layers, of which layer 2 adds nothing."""
    torch.manual_seed(0)
    config = tiny_config()
    config.num_hidden_layers = 4
    made = LlamaForCausalLM(config).eval()
    idle = made.model.layers[2]
    with torch.no_grad():
        idle.self_attn.o_proj.weight.zero_()
        idle.mlp.down_proj.weight.zero_()
    return made


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 512, (1, 48), generator=torch.Generator().manual_seed(1))


def logits(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def test_the_layer_that_adds_nothing_goes_first(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    assert least_missed(model, ids, 1) == [2]
    turned = block_influence(model, ids)
    assert len(turned) == 4 and min(range(4), key=turned.__getitem__) == 2
    assert turned[2] == pytest.approx(0, abs=1e-5)


def test_trying_without_layers_leaves_the_model_as_it_was(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    before = logits(model, ids)
    dropped = least_missed(model, ids, 2)
    assert torch.equal(logits(model, ids), before) and len(dropped) == 2 and 2 in dropped


def test_a_model_without_its_idle_layer_predicts_the_same(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    smaller = with_layers(model, [0, 1, 3])
    assert smaller.config.num_hidden_layers == 3
    assert torch.allclose(logits(smaller, ids), logits(model, ids), atol=1e-5)


def test_columns_that_nothing_reads_go_first(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    idle = deepcopy(model)
    with torch.no_grad():
        for layer in idle.model.layers:
            layer.mlp.down_proj.weight[:, ::3] = 0
    narrow = narrow_ffn(idle, 64, ids)
    assert narrow.config.intermediate_size == 64
    assert narrow.model.layers[0].mlp.up_proj.weight.shape == (64, 64)
    assert torch.allclose(logits(narrow, ids), logits(idle, ids), atol=1e-5)


def test_heads_that_nothing_reads_go_first(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    idle = deepcopy(model)
    with torch.no_grad():
        for at, layer in enumerate(idle.model.layers):
            layer.self_attn.o_proj.weight[:, (32, 0)[at % 2] : (64, 32)[at % 2]] = (
                0  # the queries of one of two
            )
    narrow = narrow_attention(idle, 1, ids)
    assert (narrow.config.num_attention_heads, narrow.config.num_key_value_heads) == (2, 1)
    assert narrow.model.layers[0].self_attn.k_proj.weight.shape == (16, 64)
    assert torch.allclose(logits(narrow, ids), logits(idle, ids), atol=1e-5)


def test_pruned_heads_are_made_up_for_and_the_model_is_loaded_again(parent: Path, tmp_path: Path) -> None:
    windows = torch.from_numpy(calibration_windows(Calibration(tokens=4096), parent / "tokenizer.json"))
    whole = load_causal_lm(parent)
    bare = narrow_attention(whole, 1, windows[:4])
    narrow, made = pruned(load_causal_lm(parent), Prune(kv_heads=1), windows, silent)
    assert all(after < before for before, after in made["reconstructed"].values())
    expected = logits(whole, windows[-1:])
    distance = [float((logits(one, windows[-1:]) - expected).square().mean()) for one in (bare, narrow)]
    assert distance[1] < distance[0]
    narrow.save_pretrained(tmp_path)
    assert torch.equal(logits(load_causal_lm(tmp_path), windows[:1]), logits(narrow, windows[:1]))


@pytest.mark.parametrize("heads", [2, 3])
def test_heads_that_cannot_be_are_refused(model: LlamaForCausalLM, ids: torch.Tensor, heads: int) -> None:
    with pytest.raises(InvalidInput, match=rf"kv_heads \({heads}\) must be below the model's 2"):
        narrow_attention(model, heads, ids)


@pytest.mark.parametrize("width", [96, 128, 40, 16])
def test_a_width_that_cannot_be_is_refused(model: LlamaForCausalLM, ids: torch.Tensor, width: int) -> None:
    with pytest.raises(InvalidInput, match=rf"ffn \({width}\) must be a multiple of 32 below the model's 96"):
        narrow_ffn(model, width, ids)


@pytest.mark.parametrize("two_of_four", [False, True])
def test_the_smallest_weights_become_zero(model: LlamaForCausalLM, two_of_four: bool) -> None:
    copy = deepcopy(model)
    zero_smallest(copy, 0.5, two_of_four)
    before, after = (one.model.layers[0].mlp.up_proj.weight for one in (model, copy))
    assert share_of_zeros(copy) == pytest.approx(0.5, abs=0.07), "layer 2 holds whole matrices of zeros"
    assert torch.equal(copy.lm_head.weight, model.lm_head.weight)
    kept = after != 0
    assert torch.equal(after[kept], before[kept])
    if two_of_four:
        assert (kept.view(-1, 4).sum(-1) == 2).all()
    else:
        assert before[~kept].abs().max() < before[kept].abs().min()


@pytest.mark.parametrize("pattern", ["any", "2:4"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_zeros_that_look_at_inputs_cost_less_than_magnitude(parent: Path, method: str, pattern: str) -> None:
    if find_spec("llmcompressor") is None:
        pytest.skip("llmcompressor is not installed")
    windows = torch.from_numpy(calibration_windows(Calibration(tokens=2048), parent / "tokenizer.json"))
    whole = load_causal_lm(parent)
    apart: dict[str, float] = {}
    for name in ("magnitude", method):
        wanted = Prune(sparsity=0.5, method=name, pattern=pattern)
        zeroed, made = pruned(load_causal_lm(parent), wanted, windows, silent)
        assert made["zeros"] == pytest.approx(0.5, abs=0.01)
        apart[name] = float((logits(zeroed, windows[-1:]) - logits(whole, windows[-1:])).square().mean())
    assert apart[method] < apart["magnitude"]


def test_an_unknown_layer_is_named(parent: Path) -> None:
    windows = torch.zeros((1, 32), dtype=torch.int64)
    with pytest.raises(InvalidInput, match="no layer 7: the model's 2 are 0 to 1"):
        pruned(load_causal_lm(parent), Prune(drop=(0, 7)), windows, silent)
    with pytest.raises(InvalidInput, match="2 layers are to stay; the model has 2"):
        pruned(load_causal_lm(parent), Prune(layers=2), windows, silent)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({}, "say what goes"),
        ({"layers": 4, "sparsity": 0.5}, "say what goes"),
        ({"layers": 4, "drop": [1]}, "not both"),
        ({"pattern": "2:4", "sparsity": 0.7}, "2:4 is a sparsity of 0.5"),
    ],
)
def test_a_wish_that_contradicts_itself_is_refused(said: dict, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Prune(**said)
