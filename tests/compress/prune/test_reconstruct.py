"""Layers before a gap are solved for what the missing ones gave: matrices that are known, tiny trained models."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM

from compress.distill.decoder_objective import Distillation
from compress.distill.preparation import solved_once
from compress.distill.recipe import DistillRecipe, Student
from compress.distill.teach_decoder import reconstructed
from compress.prune.layers import with_layers
from compress.prune.reconstruct import changed, least_squares, reconstruct, solvable
from compress.prune.width import narrow_ffn
from everlearn.progress import silent
from tests.compress.distill.test_distill import options, packers, trained
from tests.support.tiny_models import tiny_config
from train.loop import fit
from train.objectives.causal import CausalLM
from train.recipe import Data


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    return trained(4, tmp_path_factory.mktemp("teacher")).eval()


def test_a_known_matrix_is_found_and_noise_is_left_alone() -> None:
    torch.manual_seed(0)
    inputs, matrix = torch.randn(800, 24), torch.randn(24, 8)
    weights = torch.rand(800, 1) + 0.5
    change, before, after = least_squares(inputs, inputs @ matrix, weights)
    assert torch.allclose(change, matrix, atol=0.1)
    assert after < 0.01 * before
    change, before, after = least_squares(inputs, torch.randn(800, 8), weights)
    assert before - after < 0.05 * before
    assert change.norm() < 0.3 * matrix.norm()


def test_one_huge_token_does_not_decide_for_all_where_each_counts_by_its_target() -> None:
    torch.manual_seed(0)
    inputs, matrix = torch.randn(400, 8), torch.randn(8, 4)
    missing = inputs @ matrix
    inputs[7], missing[7] = inputs[7] * 1000, torch.randn(4) * 1000
    change, _, _ = least_squares(inputs, missing, 1 / missing.square().sum(-1, keepdim=True))
    assert torch.allclose(change, matrix, atol=0.3)


def distance(teacher: LlamaForCausalLM, student: LlamaForCausalLM) -> float:
    batch = {key: torch.as_tensor(one) for key, one in packers()[2].batch(0, 4).items()}
    with torch.no_grad():
        loss, count = Distillation(teacher, 1.0, 1.0)(student, batch)
    return (loss / count).item()


def test_a_gap_is_taken_over_by_the_layer_before_it_and_nothing_else_changes(
    teacher: LlamaForCausalLM,
) -> None:
    kept = [0, 2, 3]
    student = with_layers(teacher, kept)
    untouched = copy.deepcopy(student.state_dict())
    theirs = copy.deepcopy(teacher.state_dict())
    assert changed(teacher, student, kept) == [(0, 1)]
    before = distance(teacher, student)
    rows = {key: torch.as_tensor(one) for key, one in packers()[0].batch(0, 64).items()}
    apart = reconstruct(teacher, student, kept, rows)
    assert apart.keys() == {0}
    assert apart[0][1] < 0.9 * apart[0][0]
    assert distance(teacher, student) < 0.8 * before
    different = {name for name, one in student.state_dict().items() if not torch.equal(one, untouched[name])}
    assert different == {"model.layers.0.mlp.down_proj.weight"}
    assert all(torch.equal(one, theirs[name]) for name, one in teacher.state_dict().items())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in student.modules())


def test_narrower_layers_are_all_solved_for(teacher: LlamaForCausalLM) -> None:
    rows = {key: torch.as_tensor(one) for key, one in packers()[0].batch(0, 64).items()}
    student = narrow_ffn(teacher, 64, rows["input_ids"][:4])
    kept = list(range(4))
    assert changed(teacher, student, kept) == [(at, at) for at in kept]
    before = distance(teacher, student)
    assert reconstruct(teacher, student, kept, rows).keys() == set(kept)
    assert distance(teacher, student) < before


def test_padding_is_not_learnt_from(teacher: LlamaForCausalLM) -> None:
    rows = {key: torch.as_tensor(one) for key, one in packers()[0].batch(0, 16).items()}
    more = {
        "input_ids": torch.zeros(16, 128, dtype=torch.int64),
        "position_ids": torch.zeros(16, 128, dtype=torch.int64),
        "document_ids": torch.full((16, 128), -1),
    }
    padded = {key: torch.cat([rows[key], more[key]]) for key in more}
    solved = []
    for batch in (rows, padded):
        student = with_layers(teacher, [0, 2, 3])
        reconstruct(teacher, student, [0, 2, 3], batch)
        solved.append(student.model.layers[0].mlp.down_proj.weight)
    assert torch.allclose(*solved, atol=1e-4)


def test_a_layer_whose_output_is_not_its_residual_and_down_proj_is_left_as_it_is() -> None:
    config = Gemma2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=64,
    )
    model = Gemma2ForCausalLM(config).eval()
    ids = torch.arange(32).view(2, 16)
    positions = torch.arange(16).expand(2, 16)
    assert solvable(model, [0, 1], ids, positions) == set()
    batch = {"input_ids": ids, "position_ids": positions, "document_ids": torch.zeros_like(ids)}
    assert reconstruct(model, with_layers(model, [0, 2]), [0, 2], batch) == {}


def test_another_student_owes_nothing(teacher: LlamaForCausalLM, tmp_path: Path) -> None:
    config = tiny_config()
    config.hidden_size, config.num_hidden_layers = config.hidden_size // 2, 2
    assert changed(teacher, LlamaForCausalLM(config), [0, 1]) == []
    assert changed(teacher, with_layers(teacher, [0, 1, 2]), [0, 1, 2]) == [(2, 3)]


def test_a_run_that_goes_on_from_a_checkpoint_is_not_solved_for_again(
    teacher: LlamaForCausalLM, tmp_path: Path
) -> None:
    recipe = DistillRecipe(
        name="small",
        teacher="tiny",
        student=Student(layers=3),
        data=Data(train=(tmp_path / "unused.txt",)),
        reconstruct_tokens=2048,
        **options(3, 1e-3).model_dump(),
    )
    kept, packer = [0, 2, 3], packers()[1]

    def begun() -> tuple[LlamaForCausalLM, dict[str, list[float]]]:
        student = with_layers(teacher, kept)
        return student, solved_once(
            recipe, tmp_path, lambda: reconstructed(recipe, teacher, student, kept, packer, silent)
        )

    def solved(student: LlamaForCausalLM) -> bool:
        return not torch.equal(
            student.model.layers[0].mlp.down_proj.weight, teacher.model.layers[0].mlp.down_proj.weight
        )

    first, said = begun()
    again, same = begun()
    assert solved(first) and solved(again), "without a checkpoint there is nothing to go on from"
    stopping = iter([False, True])
    fit(first, CausalLM(), packer, recipe, run_dir=tmp_path, should_stop=lambda: next(stopping))
    resumed, kept_said = begun()
    assert not solved(resumed)
    assert said == same == kept_said
