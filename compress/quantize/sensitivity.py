"""Find the layers that rounding hurts most: those keep more bits, up to a fraction of the weights.

Each layer alone is rounded, and the divergence of the model's predictions from the untouched model's is measured on a
few hundred tokens. In small models a few matrices make most of the loss: their inputs hold massive activations (arXiv
2402.17762), or all that follows reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.quantize.blocks import round_to_nearest
from compress.quantize.mapped import computing_with

TRIAL_TOKENS = 256
"""A layer is tried on so many: each position counts with its whole distribution."""
INT8_STEPS = 127.5
"""A row's largest number lies so many steps from 0, as compressed-tensors reckons."""

STACKS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers that onnxruntime-genai's builder and vLLM make one matrix of, in this order: they are rounded alike."""

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


Rounding = Callable[[Sequence[nn.Linear]], AbstractContextManager[None]]
"""Within, the given layers compute as they would rounded, and the model stays as it is."""


@torch.no_grad()
def sensitivities(
    model: Any,
    ids: Tensor,
    groups: Groups,
    rounding: Rounding,
    on_group: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Nats per token that rounding a group costs by itself; ids: int64 (1, seq)."""
    expected = log_probabilities(model, ids)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found: dict[str, float] = {}
    for group, names in groups.items():
        with rounding([linear[name] for name in names]):
            found[group] = divergence(expected, model, ids)
        if on_group:
            on_group(len(found), len(groups))
    return found


def weights_in_int4(layers: Sequence[nn.Linear]) -> AbstractContextManager[None]:
    """4 bits to nearest, in blocks of 32."""
    return computing_with(layers, lambda layer, _: round_to_nearest(weight_of(layer)).weight())


@contextmanager
def all_in_int8(layers: Sequence[nn.Linear]) -> Iterator[None]:
    """8 bits to nearest: weights with a scale per output, inputs with one per token."""
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: (in_int8(inputs[0]),)) for layer in layers]
    try:
        with computing_with(layers, lambda layer, _: in_int8(weight_of(layer))):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def weight_of(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.detach()


def in_int8(rows: Tensor, steps: float = INT8_STEPS) -> Tensor:
    """Each row (…, n) rounded with a scale of its own, as ``w8a8`` has weights and inputs; its largest is ``steps``."""
    scales = rows.abs().amax(-1, keepdim=True).clamp(min=1e-12) / steps
    return (rows / scales).round_().clamp_(-128, 127).mul_(scales)


def log_probabilities(model: Any, ids: Tensor) -> Tensor:
    """float32 (seq, vocab)."""
    return model(ids, use_cache=False).logits[0].float().log_softmax(-1)


def divergence(expected: Tensor, model: Any, ids: Tensor) -> float:
    """Mean KL of the model's predictions from log-probabilities (seq, vocab), in nats per token; ids: int64 (1, seq)."""
    return (expected.exp() * (expected - log_probabilities(model, ids))).sum(-1).mean().item()


def most_sensitive(
    costs: Mapping[str, float], sizes: Mapping[str, int], share: float, enough: float = 0.0
) -> list[str]:
    """The groups that cost most for each weight, until all others cost no more than ``enough`` together.

    As many as fit into ``share`` of all weights.
    """
    room = share * sum(sizes.values())
    others = sum(costs.values())
    chosen: list[str] = []
    for group in sorted(costs, key=lambda one: costs[one] / sizes[one], reverse=True):
        if others <= enough:
            break
        if costs[group] > 0 and sizes[group] <= room:
            chosen.append(group)
            room -= sizes[group]
            others -= costs[group]
    return chosen


def hurt_most(
    model: Any,
    ids: Tensor,
    groups: Groups,
    rounding: Rounding,
    share: float,
    on_group: Callable[[int, int], None] | None = None,
    enough: float = 0.0,
) -> list[str]:
    """The :func:`most_sensitive` groups, by :func:`sensitivities` on the last of ``ids``, int64 (windows, seq)."""
    linear = dict(model.named_modules())
    costs = sensitivities(model, ids[-1:, :TRIAL_TOKENS], groups, rounding, on_group)
    sizes = {group: sum(linear[name].weight.numel() for name in names) for group, names in groups.items()}
    return most_sensitive(costs, sizes, share, enough)
