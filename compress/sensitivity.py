"""Which layers 4 bits hurt most: those stay at 8, as far as a share of the weights allows.

Each layer alone is rounded to 4 bits, and the divergence of the model's predictions from the untouched model's is
measured on a few hundred tokens. In small models a few matrices make most of the loss: their inputs hold massive
activations (arXiv 2402.17762), or all that follows reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.gptq import round_to_nearest

TRIAL_TOKENS = 256
"""A layer is tried on so many: each position counts with its whole distribution."""

STACKS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers that onnxruntime-genai's builder makes one matrix of, in this order: they have the same number of bits."""

Groups = Mapping[str, list[str]]
"""The names of the linear layers that are one matrix in the graph, by the name of that."""


def stacked(names: list[str]) -> dict[str, list[str]]:
    """The groups of all linear layers of a model but the output layer."""
    of = {part: stack for stack, parts in STACKS.items() for part in parts}
    groups: dict[str, list[str]] = {}
    for name in names:
        folder, _, last = name.rpartition(".")
        groups.setdefault(f"{folder}.{of.get(last, last)}", []).append(name)
    return groups


@torch.no_grad()
def sensitivities(
    model: Any, ids: Tensor, groups: Groups, on_group: Callable[[int, int], None] | None = None
) -> dict[str, float]:
    """Nats a token that rounding a group to 4 bits costs by itself; ids: int64 (1, seq). The model stays as it is."""
    expected = log_probabilities(model, ids)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found: dict[str, float] = {}
    for group, names in groups.items():
        kept = [linear[name].weight.clone() for name in names]
        for name in names:
            linear[name].weight.copy_(round_to_nearest(linear[name].weight).weight())
        found[group] = divergence(expected, model, ids)
        for name, weight in zip(names, kept, strict=True):
            linear[name].weight.copy_(weight)
        if on_group:
            on_group(len(found), len(groups))
    return found


def log_probabilities(model: Any, ids: Tensor) -> Tensor:
    """float32 (seq, vocab)."""
    return model(ids, use_cache=False).logits[0].float().log_softmax(-1)


def divergence(expected: Tensor, model: Any, ids: Tensor) -> float:
    """Mean KL of the model's predictions from log-probabilities (seq, vocab), in nats a token; ids: int64 (1, seq)."""
    return (expected.exp() * (expected - log_probabilities(model, ids))).sum(-1).mean().item()


def most_sensitive(costs: Mapping[str, float], sizes: Mapping[str, int], share: float) -> list[str]:
    """The groups that cost most for each weight, as many as fit into ``share`` of all weights."""
    room = share * sum(sizes.values())
    chosen: list[str] = []
    for group in sorted(costs, key=lambda one: costs[one] / sizes[one], reverse=True):
        if costs[group] > 0 and sizes[group] <= room:
            chosen.append(group)
            room -= sizes[group]
    return chosen
