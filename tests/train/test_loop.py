"""The loop: one gradient however a step is cut, a schedule, and an end when numbers end."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.train.conftest import run
from train.data.packing import Packer
from train.data.store import open_store
from train.errors import Diverged
from train.loop import choose_dtype, divide, total_steps
from train.objectives.causal import CausalLM
from train.optim import adamw, lr_at
from train.recipe import Optimizer, Schedule, TrainRecipe


def test_a_model_learns_and_the_log_says_how(base: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["validation"] = {"every_steps": 8}
    _, reports, result = run(base, recipe, tmp_path)
    assert result.finished and result.steps == len(reports) == 20
    assert result.held_nll < result.held_nll_before - 1
    assert result.tokens > 20 * 256 * 0.8
    assert result.tokens_per_s > 0 and result.peak_memory_bytes > 2**20
    assert [report.step for report in reports if report.held_nll is not None] == [8, 16]
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert lines == [dataclasses.asdict(report) for report in reports]


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_a_step_is_the_same_however_it_is_cut(
    base: Path, recipe: dict[str, Any], tmp_path: Path, micro_batch: int
) -> None:
    recipe |= {"steps": 6}
    _, expected, whole = run(base, recipe, tmp_path / "two")
    recipe |= {"micro_batch": micro_batch, "gradient_checkpointing": micro_batch == 1}
    _, reports, cut = run(base, recipe, tmp_path / "cut")
    for one, other in zip(expected, reports, strict=True):
        assert (one.loss, one.grad_norm) == pytest.approx((other.loss, other.grad_norm), abs=1e-4)
    assert cut.held_nll == pytest.approx(whole.held_nll, abs=1e-4)


def test_the_loop_is_the_plain_torch_loop(base: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    """Three steps by hand, with torch's own cross-entropy, clipping and AdamW."""
    recipe |= {"steps": 3, "micro_batch": 4}
    trained, reports, _ = run(base, recipe, tmp_path)
    wanted = TrainRecipe.model_validate(recipe)
    packer = Packer(open_store(Path(recipe["data"]["store"])), 64, wanted.seed)
    model = LlamaForCausalLM.from_pretrained(base)
    optimizer = adamw(model, wanted.optimizer)
    for step in range(3):
        batch = {key: torch.as_tensor(value) for key, value in packer.batch(step, 4).items()}
        logits = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, 3, wanted.optimizer.lr, wanted.schedule)
        optimizer.step()
        optimizer.zero_grad()
        assert reports[step].loss == pytest.approx(loss.item(), abs=1e-5)
        assert reports[step].grad_norm == pytest.approx(norm.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(trained.get_parameter(name), parameter, rtol=1e-3, atol=2e-4)


def test_a_loss_that_is_no_number_ends_the_run(base: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe |= {"optimizer": {"lr": 1e25, "clip": 0}, "schedule": {"warmup_fraction": 0}}
    recipe |= {"checkpoint": {"every_steps": 1}}
    with pytest.raises(Diverged, match=r"at step \d+ of 20.*smaller optimizer.lr than 1e\+25"):
        run(base, recipe, tmp_path)


def test_bfloat16_multiplies_in_bfloat16_and_keeps_float32_weights(
    base: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe |= {"dtype": "bfloat16", "steps": 10}
    model, reports, _ = run(base, recipe, tmp_path / "half")
    _, exact, _ = run(base, recipe | {"dtype": "float32"}, tmp_path / "full")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    losses = [report.loss for report in reports]
    assert losses != [report.loss for report in exact]
    assert losses == pytest.approx([report.loss for report in exact], rel=0.02)


def test_held_rows_are_counted_once_and_bounded(base: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    """23 documents fill no whole number of micro-batches: the surplus must not weigh."""
    recipe |= {"steps": 1}
    packer = Packer(open_store(Path(recipe["data"]["held_store"])), 64, 0)
    assert packer.rows % 4
    model = LlamaForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        batch = {key: torch.as_tensor(value) for key, value in packer.batch(0, packer.rows).items()}
        loss, targets = CausalLM()(model, batch)
        three = {key: value[:3] for key, value in batch.items()}
        some, fewer = CausalLM()(model, three)
    _, _, whole = run(base, recipe | {"micro_batch": 4}, tmp_path / "whole")
    assert whole.held_nll_before == pytest.approx((loss / targets).item(), abs=1e-5)
    recipe |= {"validation": {"tokens": 3 * 64 + 5}}
    _, _, bounded = run(base, recipe, tmp_path / "bounded")
    assert bounded.held_nll_before == pytest.approx((some / fewer).item(), abs=1e-5)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    rates = [lr_at(step, 100, 2.0, Schedule(warmup_fraction=0.1, final_fraction=0.1)) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0)
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(0.2 + 1.8 * 0.5, abs=0.01)
    assert rates[-1] == pytest.approx(0.2, abs=0.01)
    assert all(later < sooner for sooner, later in pairwise(rates[10:]))


def test_decay_spares_vectors(base: Path) -> None:
    optimizer = adamw(LlamaForCausalLM.from_pretrained(base), Optimizer(weight_decay=0.3))
    decays = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {2: 0.3, 1: 0.0}


def test_the_number_of_steps_and_the_share_of_a_rank() -> None:
    options = TrainRecipe.model_validate(
        {"data": {"store": "x"}, "sequence_tokens": 10, "batch_tokens": 120, "micro_batch": 5, "epochs": 2}
    )
    assert total_steps(options, rows=30) == 5
    assert total_steps(options, rows=1) == 1
    assert divide(options, 1) == (4, 3)
    assert divide(options, 4) == (3, 1)


def test_auto_is_bfloat16_only_where_the_processor_multiplies_it() -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    has = "avx512_bf16" in flags or "amx_bf16" in flags
    assert choose_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if has else torch.float32)
    assert math.isclose(torch.finfo(choose_dtype("bfloat16", torch.device("cpu"))).eps, 2**-7)
