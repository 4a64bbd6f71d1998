"""The loss is the definition's, in less memory; packed documents do not see each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from tests.train.conftest import sequences
from train.data.packing import Packer
from train.objectives import linear_loss as chunked
from train.objectives.causal import CausalLM
from train.objectives.linear_loss import cross_entropies, linear_loss
from train.objectives.logits import head_of


def packed(sequence_tokens: int = 64, rows: int = 3) -> dict[str, Tensor]:
    packer = Packer(list(sequences(30, 5)), sequence_tokens, seed=0)
    return {key: torch.as_tensor(value) for key, value in packer.batch(0, rows).items()}


def one_by_one(model: torch.nn.Module, batch: dict[str, Tensor]) -> float:
    """The same loss, each document alone in a forward of its own, by transformers' logits."""
    total = 0.0
    for row in range(len(batch["input_ids"])):
        for document in batch["document_ids"][row].unique():
            if document < 0:
                continue
            at = batch["document_ids"][row] == document
            ids, labels = batch["input_ids"][row][at][None], batch["labels"][row][at]
            logits = model(input_ids=ids).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(
                logits.float(), labels[1:], reduction="sum", ignore_index=-100
            ).item()
    return total


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_packed_batch_costs_what_its_documents_cost_alone(base: Path, family: str) -> None:
    torch.manual_seed(0)
    small = {"vocab_size": 512, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = {
        "llama": lambda: LlamaForCausalLM.from_pretrained(base),
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(hidden_size=64, intermediate_size=96, num_hidden_layers=2, **small)
        ),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=128)
        ),
    }[family]().eval()
    batch = packed()
    assert max(len(row.unique()) for row in batch["document_ids"]) > 2
    with torch.no_grad():
        loss, targets = CausalLM()(model, batch)
        expected = one_by_one(model, batch)
    assert int(targets) == int((batch["labels"] != -100).sum())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert (head_of(model) is None) == (family == "gemma2")  # it caps its logits


def test_a_change_in_one_document_changes_no_other(base: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(base).eval()
    batch = packed(rows=1)
    document = batch["document_ids"][0, 0]
    others = batch["document_ids"] != document
    kept = {**batch, "labels": batch["labels"].where(others, torch.tensor(-100))}
    changed = {**kept, "input_ids": batch["input_ids"].where(others, torch.tensor(3))}
    with torch.no_grad():
        before, after = CausalLM()(model, kept)[0], CausalLM()(model, changed)[0]
    assert before.item() == after.item()


@pytest.mark.parametrize("chunk_bytes", [1, 10**9])
@pytest.mark.parametrize("biased", [False, True])
def test_loss_and_gradients_are_torchs(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, biased: bool
) -> None:
    monkeypatch.setattr(chunked, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(1)
    hidden = torch.randn(200, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(50, dtype=torch.float64, requires_grad=True) if biased else None
    rows = torch.randperm(200)[:131].sort().values
    targets = torch.randint(0, 50, (131,))
    leaves = [hidden, weight, *([bias] if biased else [])]
    ours = linear_loss(hidden, weight, bias, rows, cross_entropies(targets))
    theirs = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(hidden[rows], weight, bias), targets, reduction="sum"
    )
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for mine, expected in zip(
        torch.autograd.grad(3 * ours, leaves), torch.autograd.grad(3 * theirs, leaves), strict=True
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert linear_loss(hidden, weight, bias, rows, cross_entropies(targets)).item() == pytest.approx(
            theirs.item(), rel=1e-5
        )


def test_logits_are_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    widest: list[int] = []
    made = chunked._logits
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 4 * 1000 * 64)
    monkeypatch.setattr(chunked, "_logits", lambda *given: widest.append(len(given[0])) or made(*given))
    hidden, weight = torch.randn(500, 8, requires_grad=True), torch.randn(1000, 8)
    targets = torch.zeros(500, dtype=torch.int64)
    linear_loss(hidden, weight, None, torch.arange(500), cross_entropies(targets))
    assert max(widest) == 64
    assert sum(widest) == 500


def test_a_batch_without_targets_costs_nothing_and_has_a_gradient(base: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(base)
    batch = packed(rows=1)
    batch["labels"].fill_(-100)
    loss, targets = CausalLM()(model, batch)
    loss.backward()
    assert (loss.item(), targets.item()) == (0, 0)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
