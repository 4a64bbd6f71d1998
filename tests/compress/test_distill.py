"""A student taught by its teacher, beside the same student alone: real text, tiny models, seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from compress.distill import Distillation, shallower
from tests.compress.tiny_models import tiny_config, train_tokenizer
from train.data.packing import Packer
from train.data.store import Example
from train.evaluate import held_text
from train.loop import Held, fit
from train.objectives import CausalLM
from train.recipe import FitOptions, Optimizer


def packers() -> tuple[Packer, Packer, Packer]:
    """What the teacher reads, what the students read (a tenth of it), and what all are measured on."""
    tokenizer = train_tokenizer()
    documents = [
        np.array(tokenizer.encode(text).ids[:256], dtype=np.int32) for text in held_text().text.split("\n\n")
    ]
    examples = [Example(ids, np.ones(len(ids), dtype=np.bool_)) for ids in documents if len(ids) > 8]
    held, rest = examples[::8], [one for at, one in enumerate(examples) if at % 8]
    return Packer(rest, 128, 0), Packer(rest[::10], 128, 0), Packer(held, 128, 0)


def options(steps: int, lr: float) -> FitOptions:
    return FitOptions(
        sequence_tokens=128,
        batch_tokens=1024,
        micro_batch=8,
        steps=steps,
        optimizer=Optimizer(lr=lr),
        dtype="float32",
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = tiny_config()
    config.num_hidden_layers, config.initializer_range = 4, 0.02
    model = LlamaForCausalLM(config)
    fit(model, CausalLM(), packers()[0], options(300, 3e-3), run_dir=tmp_path_factory.mktemp("teacher"))
    return model


def test_a_taught_student_beats_the_same_student_alone_on_the_same_tokens(
    teacher: LlamaForCausalLM, tmp_path: Path
) -> None:
    _, few, held = packers()
    nll, tokens = {}, {}
    for name, objective in (("taught", Distillation(teacher, 2.0, 0.9)), ("alone", CausalLM())):
        student = shallower(teacher, 2)
        found = fit(student, objective, few, options(100, 2e-3), run_dir=tmp_path / name, validate=Held(held))
        nll[name], tokens[name] = found.held_nll, found.tokens
        print(name, found.held_nll_before, found.held_nll)
    assert tokens["taught"] == tokens["alone"]
    assert nll["taught"] < nll["alone"] - 0.02
