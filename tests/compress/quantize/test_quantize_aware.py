"""A model that learns with its weights rounded loses less when they are."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from compress.distill.decoder_objective import Distillation
from compress.plan import follow
from compress.quantize import rtn
from compress.quantize.blocks import Quantized
from compress.quantize.quantize_aware import keep_rounded, round_in_training
from compress.recipe import CompressPlan
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.compress.distill.test_distill import options, packers
from tests.support.tiny_models import tiny_config
from train.evaluate.held_out_text import held_out_text
from train.loop import fit
from train.models.load import load_causal_lm


def round_in_place(model: LlamaForCausalLM, head_bits: int) -> None:
    """To what the export makes of the weights."""
    matrices: dict[str, Quantized] = {}
    rtn.quantize_model(model, None, matrices, bits={"lm_head": head_bits})
    with torch.no_grad():
        for name, matrix in matrices.items():
            model.get_submodule(name).weight.copy_(matrix.weight())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head_bits", [4, 8])
def test_weights_are_those_of_the_export_while_it_learns_and_after(tied: bool, head_bits: int) -> None:
    torch.manual_seed(0)
    config = tiny_config()
    config.tie_word_embeddings = tied
    model = LlamaForCausalLM(config).eval()
    rounded, ids = deepcopy(model), torch.arange(24)[None]
    round_in_place(rounded, head_bits)
    expected = rounded(ids).logits
    names = set(model.state_dict())
    modules = round_in_training(model, head_bits)
    assert torch.equal(model(ids).logits, expected)
    keep_rounded(modules)
    assert torch.equal(model(ids).logits, expected)
    assert set(model.state_dict()) == names
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    round_in_place(model, head_bits)  # what is rounded already stays as it is
    assert torch.equal(model(ids).logits, expected)


def test_teaching_brings_back_what_rounding_took(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = LlamaForCausalLM(tiny_config())  # random weights lose more than those of a trained tiny model
    _, few, held = packers()
    batch = {key: torch.as_tensor(one) for key, one in held.batch(0, 4).items()}
    student = deepcopy(teacher).requires_grad_(True)

    def distance() -> float:
        with torch.no_grad():
            loss, count = Distillation(teacher, 1.0, 1.0)(student, batch)
        return (loss / count).item()

    modules = round_in_training(student, 4)
    before = distance()
    fit(student, Distillation(teacher, 1.0, 1.0), few, options(100, 1e-4), run_dir=tmp_path / "run")
    keep_rounded(modules)
    assert 0 < distance() < 0.8 * before


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., CompressPlan]:
    (tmp_path / "corpus.txt").write_text(held_out_text().text)

    def of(**targets: object) -> CompressPlan:
        heal = {
            "data": {"train": [str(tmp_path / "corpus.txt")], "held_fraction": 0.2},
            "sequence_tokens": 128, "batch_tokens": 512, "steps": 4, "quantize_to": "int4-onnx",
        }  # fmt: skip
        return CompressPlan.model_validate({"heal": heal, "targets": [{"to": "int4-onnx", **targets}]})

    return of


def test_a_plan_teaches_first_and_the_export_has_the_very_weights(
    tiny_settings: Settings, plan: Callable[..., CompressPlan]
) -> None:
    registry = Registry(tiny_settings)
    taught, int4 = follow(tiny_settings, "tiny@1", plan())
    assert taught.manifest.recipe["distill"]["quantize_to"] == "int4-onnx"
    assert [one.ref for one in registry.lineage(int4.ref)] == [int4.ref, taught.ref, "tiny@1"]
    model = load_causal_lm(registry.path(taught))
    rounded = deepcopy(model)
    round_in_place(rounded, 8)
    for (name, weight), (_, same) in zip(model.named_parameters(), rounded.named_parameters(), strict=True):
        assert torch.equal(weight, same), name
    assert int4.manifest.metrics["divergence"] < 1e-3  # of activations that the kernels round
