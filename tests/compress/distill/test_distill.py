"""A student taught by its teacher, beside the same student alone: real text, tiny models, seconds."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from compress.distill.decoder_objective import (
    Distillation,
    Divergence,
    HiddenStates,
    counterparts,
    divergence_and_grad,
    outputs_of,
)
from compress.distill.recipe import DistillRecipe, Student
from compress.distill.run import distill
from compress.prune.layers import evenly_spaced, with_layers
from everlearn.errors import Conflict, InvalidInput
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.support.tiny_models import tiny_config, train_tokenizer
from train.data.packing import Packer
from train.data.store import Example
from train.evaluate.held_out_text import held_out_text
from train.loop import fit
from train.models.load import load_causal_lm
from train.objectives.causal import CausalLM, next_token_validation
from train.recipe import Data, FitOptions, Optimizer
from train.runs.claim import claimed


@cache
def packers() -> tuple[Packer, Packer, Packer]:
    """What the teacher reads, what the students read (a tenth of it), and what all are measured on."""
    tokenizer = train_tokenizer()
    documents = [
        np.array(tokenizer.encode(text).ids[:256], dtype=np.int32)
        for text in held_out_text().text.split("\n\n")
    ]
    examples = [Example(ids, np.ones(len(ids), dtype=np.bool_)) for ids in documents if len(ids) > 8]
    held, rest = examples[::8], [one for at, one in enumerate(examples) if at % 8]
    return Packer(rest, 128, 0), Packer(rest[::10], 128, 0), Packer(held, 128, 0)


def options(steps: int, lr: float) -> FitOptions:
    return FitOptions(
        sequence_tokens=128,
        batch_tokens=512,
        micro_batch=4,
        steps=steps,
        optimizer=Optimizer(lr=lr),
        dtype="float32",
    )


def trained(layers: int, folder: Path) -> LlamaForCausalLM:
    """A tiny decoder that has read the held-out text a little."""
    torch.manual_seed(0)
    config = tiny_config()
    config.num_hidden_layers, config.initializer_range = layers, 0.02
    model = LlamaForCausalLM(config)
    fit(model, CausalLM(), packers()[0], options(150, 5e-3), run_dir=folder)
    return model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    return trained(3, tmp_path_factory.mktemp("teacher"))


def test_a_taught_student_beats_the_same_student_alone_on_the_same_tokens(
    teacher: LlamaForCausalLM, tmp_path: Path
) -> None:
    _, few, held = packers()
    nll, tokens = {}, {}
    for name, objective in (("taught", Distillation(teacher, 2.0, 0.9)), ("alone", CausalLM())):
        student = with_layers(teacher, evenly_spaced(2, 3))
        found = fit(
            student,
            objective,
            few,
            options(40, 2e-3),
            run_dir=tmp_path / name,
            validate=next_token_validation(held),
        )
        nll[name], tokens[name] = found.held_nll, found.tokens
    assert tokens["taught"] == tokens["alone"]
    assert nll["taught"] < nll["alone"] - 0.02, nll


def test_divergences_and_their_slopes_are_what_torch_says_they_are() -> None:
    torch.manual_seed(0)
    teacher, logits = torch.randn(5, 40).log_softmax(-1), torch.randn(5, 40, requires_grad=True)
    theirs, ours = (torch.distributions.Categorical(logits=one) for one in (teacher, logits))
    mixture = torch.distributions.Categorical(probs=(theirs.probs + ours.probs) / 2)
    between = torch.distributions.kl_divergence
    expected: dict[Divergence, torch.Tensor] = {
        "forward": between(theirs, ours).sum(),
        "reverse": between(ours, theirs).sum(),
        "jensen-shannon": (between(theirs, mixture) + between(ours, mixture)).sum() / 2,
    }
    assert expected["jensen-shannon"] / 5 < math.log(2)
    for kind, loss in expected.items():
        (slope,) = torch.autograd.grad(loss, logits, retain_graph=True)
        found, its_grad = divergence_and_grad(teacher, logits.detach().log_softmax(-1), kind)
        torch.testing.assert_close(found, loss.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(its_grad, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jensen-shannon"])
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1.0), (2.0, 0.7)])
def test_the_objectives_gradient_is_that_of_its_formula(
    teacher: LlamaForCausalLM, kind: Divergence, temperature: float, weight: float
) -> None:
    batch = {key: torch.as_tensor(value) for key, value in packers()[1].batch(0, 2).items()}
    student = with_layers(teacher, [0, 2]).eval()
    labels = batch["labels"][:, 1:]
    following = labels != -100
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    theirs, ours = (one(**inputs, use_cache=False).logits[:, :-1][following] for one in (teacher, student))
    p, q = ((one / temperature).softmax(-1) for one in (theirs, ours))
    mixture = (p + q) / 2
    soft = {
        "forward": (p * (p / q).log()).sum(),
        "reverse": (q * (q / p).log()).sum(),
        "jensen-shannon": ((p * (p / mixture).log()).sum() + (q * (q / mixture).log()).sum()) / 2,
    }[kind]
    hard = torch.nn.functional.cross_entropy(ours, labels[following], reduction="sum")
    formula = weight * temperature**2 * soft + (1 - weight) * hard
    loss, _ = Distillation(teacher, temperature, weight, kind)(student, batch)
    assert loss.item() == pytest.approx(formula.item(), rel=1e-4)
    parameters = list(student.parameters())
    for mine, expected in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(formula, parameters), strict=True
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("divergence", ["reverse", "jensen-shannon"])
def test_every_divergence_brings_the_student_nearer(
    teacher: LlamaForCausalLM, tmp_path: Path, divergence: Literal["reverse", "jensen-shannon"]
) -> None:
    few, batch = packers()[1], {key: torch.as_tensor(one) for key, one in packers()[2].batch(0, 4).items()}
    student = with_layers(teacher, evenly_spaced(2, 3))

    def distance() -> float:
        with torch.no_grad():
            loss, count = Distillation(teacher, 1.0, 1.0, divergence)(student, batch)
        return (loss / count).item()

    before = distance()
    fit(student, Distillation(teacher, 1.0, 1.0, divergence), few, options(20, 2e-3), run_dir=tmp_path)
    assert distance() < 0.8 * before


def test_the_objective_is_cross_entropy_without_a_teacher_and_nothing_for_the_teacher_itself(
    teacher: LlamaForCausalLM,
) -> None:
    batch = {key: torch.as_tensor(value) for key, value in packers()[1].batch(0, 4).items()}
    with torch.no_grad():
        alone, count = Distillation(teacher, 2.0, 0.0)(teacher, batch)
        plain, plain_count = CausalLM()(teacher, batch)
        loss, _ = Distillation(teacher, 2.0, 1.0)(teacher, batch)
    assert count == plain_count > 0
    assert alone.item() == pytest.approx(plain.item(), rel=1e-5)
    assert loss.item() / count.item() == pytest.approx(0, abs=1e-6)


def test_layers_have_their_counterparts_before_the_next_kept_one_or_at_their_depth() -> None:
    assert counterparts([0, 1, 4, 5], 4, 6) == [(0, 0), (1, 3), (2, 4), (3, 5)]
    assert counterparts([0, 2], 2, 6) == [(0, 1), (1, 5)]
    assert counterparts(None, 3, 6) == [(0, 1), (1, 3), (2, 5)]
    assert counterparts(None, 4, 4) == [(at, at) for at in range(4)]


def test_hidden_states_are_nought_for_the_teacher_itself_and_what_is_written_down_for_another(
    teacher: LlamaForCausalLM,
) -> None:
    batch = {key: torch.as_tensor(value) for key, value in packers()[1].batch(0, 2).items()}
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    same = HiddenStates(teacher, teacher, counterparts(None, 3, 3))
    student = with_layers(teacher, [0, 2])
    states = HiddenStates(teacher, student, counterparts([0, 2], 2, 3), 3.0)
    with torch.no_grad():
        assert Distillation(teacher, 1.0, 1.0, states=same)(teacher, batch)[0].item() < 1e-3
        plain, _ = Distillation(teacher, 1.0, 1.0)(student, batch)
        more, _ = Distillation(teacher, 1.0, 1.0, states=states)(student, batch)
        with outputs_of(student, [0, 1]) as ours, outputs_of(teacher, [1, 2]) as theirs:
            after_first = student(**inputs, output_hidden_states=True).hidden_states[1]
            teacher(**inputs)
    assert torch.equal(ours[0], after_first)
    expected = [relative(ours[at], theirs[at + 1], batch["labels"]) for at in (0, 1)]
    assert (more - plain).item() / 3 == pytest.approx(sum(expected) / 2, rel=1e-3)


def relative(mine: torch.Tensor, wanted: torch.Tensor, labels: torch.Tensor) -> float:
    """Squared distance over the target's square, summed where a target follows."""
    each = (mine - wanted).square().sum(-1) / wanted.square().sum(-1)
    return each[:, :-1][labels[:, 1:] != -100].sum().item()


def test_a_narrower_student_comes_nearer_through_maps_that_it_does_not_keep(
    teacher: LlamaForCausalLM, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    config = tiny_config()
    config.hidden_size, config.num_hidden_layers = config.hidden_size // 2, 2
    student = LlamaForCausalLM(config)
    names = set(student.state_dict())
    states = HiddenStates(teacher, student, counterparts(None, 2, 3))
    batch = {key: torch.as_tensor(value) for key, value in packers()[2].batch(0, 4).items()}
    objective = Distillation(teacher, 1.0, 0.0, states=states)

    def distance() -> float:
        with torch.no_grad():
            return (objective(student, batch)[0] - CausalLM()(student, batch)[0]).item()

    before = distance()
    fit(student, objective, packers()[1], options(20, 5e-3), run_dir=tmp_path)
    assert distance() < 0.8 * before
    HiddenStates.remove(student)
    assert set(student.state_dict()) == names


def test_a_student_has_the_teachers_first_and_last_layer(teacher: LlamaForCausalLM) -> None:
    student = with_layers(teacher, evenly_spaced(2, 3))
    theirs, ours = teacher.model.layers, student.model.layers
    assert (student.config.num_hidden_layers, len(ours)) == (2, 2)
    for mine, of in ((ours[0], theirs[0]), (ours[1], theirs[2])):
        assert torch.equal(mine.mlp.up_proj.weight, of.mlp.up_proj.weight)
    assert [layer.self_attn.layer_idx for layer in ours] == [0, 1]
    with pytest.raises(InvalidInput, match="3 layers were asked for; the model has 3"):
        with_layers(teacher, [0, 1, 2])


def test_a_recipe_makes_a_student_that_is_a_model_of_its_own(tiny_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(held_out_text().text)
    recipe = DistillRecipe(
        name="small",
        teacher="tiny@1",
        student=Student(layers=1),
        hidden=0.5,
        data=Data(train=(tmp_path / "corpus.txt",), held_fraction=0.2),
        sequence_tokens=128,
        batch_tokens=512,
        steps=3,
    )
    version = distill(tiny_settings, recipe, tmp_path / "run")
    registry = Registry(tiny_settings)
    assert (version.ref, version.format, version.task) == ("small@1", "safetensors", "generate")
    assert version.parent_digest == registry.resolve("tiny@1").digest
    assert version.manifest.recipe["distill"]["student"]["layers"] == 1
    assert version.manifest.metrics["steps"] == 3
    ((before, after),) = version.manifest.metrics["reconstructed"].values()
    assert after < before
    assert version.manifest.metrics["held_nll"] < version.manifest.metrics["held_nll_before"]
    assert load_causal_lm(registry.path(version)).config.num_hidden_layers == 1


def test_an_edited_text_or_another_teacher_is_a_distillation_of_its_own(
    tiny_settings: Settings, tmp_path: Path
) -> None:
    """In the default folder; the same text elsewhere goes on where it was, and one process at a time works there."""
    text = tmp_path / "corpus.txt"
    text.write_text(held_out_text().text)

    def recipe(file: Path, **changed: Any) -> DistillRecipe:
        data = Data(train=(file,), held_fraction=0.2)
        said = {"steps": 1, "sequence_tokens": 128, "batch_tokens": 256, "hidden": 0.0} | changed
        return DistillRecipe(name="small", teacher="tiny@1", student=Student(layers=1), data=data, **said)

    def folders() -> set[Path]:
        return set((tiny_settings.home / "runs").glob("small-*"))

    (tmp_path / "mine" / "model").mkdir(parents=True)
    with pytest.raises(Conflict, match=r"holds other things than a run \(model\)"):
        distill(tiny_settings, recipe(text), tmp_path / "mine")
    distill(tiny_settings, recipe(text))
    (first,) = folders()
    moved = tmp_path / "elsewhere.txt"
    moved.write_bytes(text.read_bytes())
    with claimed(first, wait_s=0), ThreadPoolExecutor(1) as pool:
        other_thread = pool.submit(distill, tiny_settings, recipe(moved))
        with pytest.raises(Conflict, match="another process is training"):
            other_thread.result()
    text.write_text(held_out_text().text + "\n\nOne sentence more.\n")
    distill(tiny_settings, recipe(text))
    assert len(folders()) == 2
