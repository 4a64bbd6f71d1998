"""Learning beside what is kept: its loss, its rows, and that it keeps."""

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from tests.support.tiny_models import tiny_config
from train.data.packing import Packer
from train.data.store import Example
from train.objectives.causal import CausalLM
from train.objectives.keep import Keeping, WithKept


def examples(count: int, seed: int) -> list[Example]:
    chance = np.random.default_rng(seed)
    lengths = chance.integers(10, 60, size=count)
    return [
        Example(chance.integers(3, 500, size=n).astype(np.int32), np.arange(n) > 0) for n in lengths.tolist()
    ]


@pytest.fixture
def batches() -> WithKept:
    return WithKept(Packer(examples(20, 0), 64, seed=0), Packer(examples(11, 1), 64, seed=0))


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config())


def test_the_loss_is_cross_entropy_of_the_new_rows_and_divergence_on_the_kept(batches: WithKept) -> None:
    now, before = model(0), model(1)
    batch = {key: torch.as_tensor(value) for key, value in batches.batch(0, 4).items()}
    kept = int(batch["kept_rows"])
    assert kept == 2
    loss, targets = Keeping(before, 2.0)(now, batch)

    new = {key: value[:-kept] for key, value in batch.items() if key != "kept_rows"}
    old = {key: value[-kept:] for key, value in batch.items() if key != "kept_rows"}
    cross_entropy, count = CausalLM()(now, new)
    inputs = {"input_ids": old["input_ids"], "position_ids": old["position_ids"], "use_cache": False}
    with torch.no_grad():
        theirs, ours = (one(**inputs).logits[:, :-1].log_softmax(-1) for one in (before, now))
    each = (theirs.exp() * (theirs - ours)).sum(-1)
    divergence = each[old["labels"][:, 1:] != -100].sum()
    assert targets == count
    torch.testing.assert_close(loss, cross_entropy + 2.0 * divergence)


def test_an_epoch_sees_each_kept_row_once_whatever_the_ranks(batches: WithKept) -> None:
    def rows(ranks: int) -> list[list[int]]:
        seen = []
        for step in range(batches.rows // (2 * ranks)):
            for rank in range(ranks):
                batch = batches.batch(step, 2, rank, ranks)
                count = int(batch["kept_rows"][0])
                seen += batch["input_ids"][len(batch["input_ids"]) - count :].tolist()
        return seen

    assert len(rows(1)) == batches.kept.rows
    for ranks in (2, 3):  # they may not fill the last step of the epoch
        shared = rows(ranks)
        assert shared and shared == rows(1)[: len(shared)]


def test_keeping_forgets_less_and_learns_as_much() -> None:
    """What two models make of new text, one of them held to what it knew of another."""
    start = model(0)
    old, new = Packer(examples(8, 2), 64, seed=0), Packer(examples(16, 3), 64, seed=0)
    train(start, old, CausalLM(), 30)

    def taught(keep: bool) -> tuple[float, float]:
        pupil = model(0)
        pupil.load_state_dict(start.state_dict())
        objective = Keeping(start, 1.0) if keep else CausalLM()
        train(pupil, WithKept(new, old) if keep else new, objective, 30)
        return loss_of(pupil, new), loss_of(pupil, old)

    before_new, before_old = loss_of(start, new), loss_of(start, old)
    (naive_new, naive_old), (kept_new, kept_old) = taught(False), taught(True)
    assert before_new - kept_new > 0.8 * (before_new - naive_new) > 0.5
    assert kept_old - before_old < 0.3 * (naive_old - before_old)


def train(one: LlamaForCausalLM, batches, objective, steps: int) -> None:
    optimizer = torch.optim.AdamW(one.parameters(), lr=3e-3)
    for step in range(steps):
        batch = {key: torch.as_tensor(value) for key, value in batches.batch(step, 4).items()}
        loss, targets = objective(one, batch)
        (loss / targets).backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def loss_of(one: LlamaForCausalLM, packer: Packer) -> float:
    sums = [CausalLM()(one, _tensors(packer.batch(n, 1))) for n in range(packer.rows)]
    return float(sum(loss for loss, _ in sums) / sum(targets for _, targets in sums))


def _tensors(batch) -> dict[str, torch.Tensor]:
    return {key: torch.as_tensor(value) for key, value in batch.items()}
