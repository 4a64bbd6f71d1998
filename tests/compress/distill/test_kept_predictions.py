"""A teacher asked once: what is kept is its distribution, each row's own, and outlives a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from compress.distill.decoder_objective import Distillation
from compress.distill.kept_predictions import KeptDistillation, KeptPredictions, thinned
from compress.distill.recipe import DistillRecipe, Student
from compress.distill.run import distill
from everlearn.errors import InvalidInput, Unavailable
from everlearn.progress import silent
from everlearn.settings import Settings
from tests.support.tiny_models import tiny_config, train_tokenizer
from train.data.packing import Packer
from train.data.store import Example
from train.evaluate.held_out_text import held_out_text
from train.objectives.causal import predicted
from train.recipe import Data, Optimizer


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = tiny_config()
    config.initializer_range = 0.1
    return LlamaForCausalLM(config).eval()


@cache
def packer() -> Packer:
    """Twenty rows of 64 tokens; a third of them are no targets."""
    ids = train_tokenizer().encode(held_out_text().text).ids[:1150]
    parts = [np.array(ids[at : at + 50], dtype=np.int32) for at in range(0, len(ids), 50)]
    return Packer([Example(one, np.arange(len(one)) % 3 > 0) for one in parts], 64, seed=1)


def kept_in(folder: Path, kept: int, teacher: LlamaForCausalLM, temperature: float = 1.0) -> KeptPredictions:
    made = KeptPredictions(packer(), 10_000, folder, kept, teacher.config.vocab_size, {"teacher": "a"})
    made.ask(teacher, temperature, torch.float32, silent)
    return made


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(one) for name, one in batch.items()}


def gradient(student: LlamaForCausalLM, loss: torch.Tensor) -> torch.Tensor:
    student.zero_grad()
    loss.backward()
    return torch.cat([one.grad.flatten() for one in student.parameters() if one.grad is not None])


def test_where_all_is_kept_it_is_the_distillation(tmp_path: Path) -> None:
    teacher, student = model(0), model(1)
    vocab = teacher.config.vocab_size
    torch.manual_seed(0)
    some = torch.randn(3, 8).log_softmax(-1)
    ids, log_probs, entropy = thinned(some, 7)
    likeliest = some.sort(-1, descending=True)
    assert torch.equal(ids[:, :4], likeliest.indices[:, :4])
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(3), atol=1e-5)
    assert torch.allclose(entropy, torch.distributions.Categorical(logits=some).entropy(), atol=1e-5)
    kept = kept_in(tmp_path, vocab - 1, teacher, 2.0)
    batch = tensors(kept.batch(0, 4))
    whole, count = Distillation(teacher, 2.0, 0.7)(student, batch)
    some_of_it, as_many = KeptDistillation(kept, 2.0, 0.7)(student, batch)
    assert count == as_many == (packer().batch(0, 4)["labels"][:, 1:] >= 0).sum()
    assert some_of_it.item() == pytest.approx(whole.item(), rel=0.03)


def test_drawn_tokens_are_on_average_the_whole_distribution() -> None:
    torch.manual_seed(0)
    log_probs = (2 * torch.randn(60)).log_softmax(-1)
    ids, kept, _ = thinned(log_probs.expand(20_000, -1), 8)
    mean = torch.zeros(60).index_add(0, ids.flatten(), kept.exp().flatten()) / len(ids)
    assert (mean - log_probs.exp()).abs().max() < 0.003
    assert mean[log_probs.argsort()[:50]].sum() > 0.05, "most of the tokens are outside the likeliest"


def test_its_gradient_is_that_of_the_whole_distribution_on_average(tmp_path: Path) -> None:
    teacher, student = model(0), model(1)
    batch = tensors(packer().batch(0, 20))
    whole = gradient(student, Distillation(teacher, 1.0, 1.0)(student, batch)[0])
    alike = []
    for kept in (16, 64, 256):
        made = kept_in(tmp_path / str(kept), kept, teacher)
        given = tensors(made.batch(0, 20))
        found = gradient(student, KeptDistillation(made, 1.0, 1.0)(student, given)[0])
        alike.append(torch.cosine_similarity(whole, found, 0).item())
    assert alike == sorted(alike)
    assert alike[-1] > 0.98, alike
    assert found.norm() / whole.norm() == pytest.approx(1, abs=0.05)


def test_ids_beyond_the_tokenizers_do_not_count(tmp_path: Path) -> None:
    cut, student, padded = model(0), model(1), model(0)
    padded.resize_token_embeddings(576)
    batch = tensors(packer().batch(0, 4))
    expected = Distillation(cut, 1.0, 0.5)(student, batch)[0].item()
    assert Distillation(padded, 1.0, 0.5)(student, batch)[0].item() == pytest.approx(expected, rel=1e-5)
    kept = KeptPredictions(packer(), 10_000, tmp_path, 511, 512, {})
    kept.ask(padded, 1.0, torch.float32, silent)
    given = KeptDistillation(kept, 1.0, 0.5)(student, tensors(kept.batch(0, 4)))[0].item()
    assert given == pytest.approx(expected, rel=0.03)
    wider = Distillation(cut, 1.0, 1.0)(padded, batch)[0].item()
    assert wider == pytest.approx(0, abs=1e-3)


def test_each_epoch_gets_the_predictions_of_its_own_rows(tmp_path: Path) -> None:
    teacher = model(0)
    kept = kept_in(tmp_path, 5, teacher)
    epoch = packer().rows // 4
    assert kept.rows == packer().rows
    seen = [kept.packer.row_numbers(step, 4) for step in (0, 3 * epoch)]
    assert seen[0] != seen[1]
    for step in (0, 3 * epoch):
        batch = tensors(kept.batch(step, 4))
        _, places = predicted(batch["labels"])
        with torch.no_grad():
            said = teacher(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        likeliest = said.logits.flatten(0, 1)[places].log_softmax(-1).topk(3, -1)
        assert torch.equal(batch["kept_ids"].flatten(0, 1)[places][:, :3], likeliest.indices)
        given = batch["kept_log_probs"].flatten(0, 1)[places][:, :3]
        assert torch.allclose(given, likeliest.values, atol=0.01)


def test_killed_it_asks_only_for_what_is_missing_and_another_teacher_of_all(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from compress.distill import kept_predictions
from tests.compress.distill import test_kept_predictions as test
folder = Path({str(tmp_path / "killed")!r})
kept_predictions.ROWS_BETWEEN_FLUSHES = 8
made = test.KeptPredictions(test.packer(), 10_000, folder, 6, test.model(0).config.vocab_size, {{"teacher": "a"}})
def kill(step, done):
    if done and done > 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
made.ask(test.model(0), 1.0, test.torch.float32, kill)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    teacher, asked = model(0), []
    teacher.register_forward_hook(lambda *_: asked.append(1))
    made = KeptPredictions(
        packer(), 10_000, tmp_path / "killed", 6, teacher.config.vocab_size, {"teacher": "a"}
    )
    before = made.done
    assert 0 < before < packer().rows
    made.ask(teacher, 1.0, torch.float32, silent)
    whole = kept_in(tmp_path / "whole", 6, model(0))
    for name in ("ids", "log_probs", "entropy"):
        assert (tmp_path / "killed" / f"{name}.npy").read_bytes() == (
            tmp_path / "whole" / f"{name}.npy"
        ).read_bytes()
    assert whole.done == made.done == packer().rows
    other = KeptPredictions(
        packer(), 10_000, tmp_path / "killed", 6, teacher.config.vocab_size, {"teacher": "b"}
    )
    assert other.done == 0


def test_predictions_that_cannot_be_kept_are_refused_before_the_teacher_is_asked(
    tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"name": "x", "teacher": "tiny@1", "student": {"layers": 1}, "data": {"train": ["a.txt"]}}
    for wrong, words in (
        ({"hidden": 1.0}, "hidden is of the teacher's states, which keep_predictions does not keep"),
        ({"divergence": "reverse"}, "keep_predictions is for divergence: forward, not reverse"),
    ):
        with pytest.raises(ValueError, match=words):
            DistillRecipe.model_validate({**said, "keep_predictions": 8, **wrong})
    with pytest.raises(InvalidInput, match="keep_predictions is 4096, and this model has"):
        KeptPredictions(packer(), 1, tmp_path / "many", 4096, 512, {})
    encoder = DistillRecipe.model_validate({**said, "teacher": "encoder", "keep_predictions": 8})
    with pytest.raises(InvalidInput, match="keep_predictions is of predictions, and encoder@1 is an encoder"):
        distill(tiny_settings, encoder, tmp_path / "encoder")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(Unavailable, match=r"GB are free under .*; about .* GB are needed. Nothing was begun"):
        kept_in(tmp_path / "full", 8, model(0))


def test_a_recipe_keeps_them_and_the_student_learns_from_them(
    tiny_settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "corpus.txt").write_text(held_out_text().text)
    recipe = DistillRecipe(
        name="kept",
        teacher="tiny@1",
        student=Student(layers=1),
        keep_predictions=16,
        weight=1,
        temperature=1,
        data=Data(train=(tmp_path / "corpus.txt",), held_fraction=0.2),
        sequence_tokens=128,
        batch_tokens=512,
        optimizer=Optimizer(lr=3e-3),
        epochs=2,
    )
    made = distill(tiny_settings, recipe, tmp_path / "run").manifest
    assert made.recipe["distill"]["keep_predictions"] == 16
    lines = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    assert 0 < lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert (tmp_path / "run" / "predictions" / "ids.npy").stat().st_size > 16 * 2 * 1000
