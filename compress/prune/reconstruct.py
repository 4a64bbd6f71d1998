"""Solve in closed form for what dropped layers did, in the layer before each gap.

Its ``down_proj`` is solved for anew, by least squares, so that its output comes as near as it can to that of the
teacher's last missing layer. One linear map for a run of layers is arXiv 2505.02819's; here it reads the wider
feed-forward activations, and a ridge keeps it to what held-out tokens confirm. Minutes of gradients are saved, and
the distillation that follows starts from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.distill.decoder_objective import counterparts, outputs_of
from compress.prune.layers import layers_of

RIDGES = tuple(10 ** (half / 2) for half in range(-4, 3))
"""Tried, relative to each activation's own energy."""
HELD_SHARE = 1 / 8
"""Of the tokens, to choose the ridge by."""
ROWS_AT_ONCE = 4
WIDTHS = ("intermediate_size", "num_key_value_heads")
"""What pruning makes smaller within a layer."""


def changed(teacher: Any, student: Any, kept: Sequence[int]) -> list[tuple[int, int]]:
    """Which of the student's layers stand for more than they are, with the teacher's layer whose output they owe.

    Those before a gap in ``kept``; all where feed-forward layers or attention are narrower. None of a student of another
    width.
    """
    ours, theirs = student.config, teacher.config
    if ours.hidden_size != theirs.hidden_size:
        return []
    narrower = any(getattr(ours, name, None) != getattr(theirs, name, None) for name in WIDTHS)
    pairs = counterparts(kept, len(kept), theirs.num_hidden_layers)
    return [(at, owed) for at, owed in pairs if narrower or kept[at] != owed]


@torch.no_grad()
def reconstruct(
    teacher: Any,
    student: Any,
    kept: Sequence[int],
    batch: Mapping[str, Tensor],
    on_part: Callable[[float], None] | None = None,
) -> dict[int, tuple[float, float]]:
    """Solves ``down_proj`` of each layer that :func:`changed` names for the output it owes, one after the other.

    Each sees what the ones before it, solved already, give it. kept: the teacher's layers that the student has; batch:
    input_ids, position_ids and document_ids, int64 (rows, seq), padding -1. Returns for each layer that
    :func:`solvable` allows the distance on held-out tokens, over the target's own square, before and after.
    """
    ids, positions = batch["input_ids"], batch["position_ids"]
    seen = (batch["document_ids"] >= 0).flatten()
    pairs = changed(teacher, student, kept)
    allowed = solvable(student, [ours for ours, _ in pairs], ids[:1], positions[:1])
    pairs = [pair for pair in pairs if pair[0] in allowed]
    wanted: dict[int, list[Tensor]] = {theirs: [] for _, theirs in pairs}
    for at in range(0, len(ids) if pairs else 0, ROWS_AT_ONCE):
        rows = slice(at, at + ROWS_AT_ONCE)
        with outputs_of(teacher, list(wanted)) as given:
            teacher.get_decoder()(input_ids=ids[rows], position_ids=positions[rows], use_cache=False)
        for theirs, outputs in wanted.items():
            outputs.append(given[theirs].flatten(0, 1))
        if on_part:
            on_part(at / len(ids) / 2)
    distances: dict[int, tuple[float, float]] = {}
    layers, hooks, residuals = layers_of(student), [], dict[int, Tensor]()
    for ours, theirs in pairs:

        def solve(
            module: nn.Module, inputs: tuple[Tensor, ...], ours: int = ours, theirs: int = theirs
        ) -> None:
            assert isinstance(module, nn.Linear)
            target = torch.cat(wanted.pop(theirs))
            given = residuals.pop(ours) + nn.functional.linear(inputs[0], module.weight, module.bias)
            missing = (target - given.flatten(0, 1))[seen]
            weights = 1 / target[seen].square().sum(-1, keepdim=True).clamp_min(1e-12)
            change, before, after = least_squares(inputs[0].flatten(0, 1)[seen], missing, weights)
            module.weight += change.T
            distances[ours] = (before, after)
            if on_part:
                on_part(0.5 + len(distances) / len(pairs) / 2)

        norm = layers[ours].post_attention_layernorm
        hooks.append(norm.register_forward_pre_hook(partial(_keep_input, residuals, ours)))  # type: ignore[union-attr]
        hooks.append(layers[ours].mlp.down_proj.register_forward_pre_hook(solve))  # type: ignore[union-attr]
    try:
        if pairs:
            student.get_decoder()(input_ids=ids, position_ids=positions, use_cache=False)
    finally:
        for one in hooks:
            one.remove()
    return distances


def batch_of(ids: Tensor) -> dict[str, Tensor]:
    """Windows of text as a batch; ids: int64 (rows, seq)."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    return {"input_ids": ids, "position_ids": positions, "document_ids": torch.zeros_like(ids)}


def rounded(distances: Mapping[int, tuple[float, float]]) -> dict[str, list[float]]:
    """As a bundle keeps it: by the layer's number."""
    return {str(at): [round(one, 6) for one in pair] for at, pair in distances.items()}


@torch.no_grad()
def solvable(model: Any, which: Sequence[int], ids: Tensor, positions: Tensor) -> set[int]:
    """Those of the layers whose output is their residual plus what ``mlp.down_proj`` gives, nothing in between."""
    layers = layers_of(model)
    residuals, given, hooks = dict[int, Tensor](), dict[int, Tensor](), []
    for at in which:
        down = getattr(getattr(layers[at], "mlp", None), "down_proj", None)
        norm = getattr(layers[at], "post_attention_layernorm", None)
        if isinstance(down, nn.Linear) and isinstance(norm, nn.Module):
            hooks.append(norm.register_forward_pre_hook(partial(_keep_input, residuals, at)))
            hooks.append(down.register_forward_hook(partial(_keep_output, given, at)))
    try:
        with outputs_of(model, list(which)) as outputs:
            if hooks:
                model.get_decoder()(input_ids=ids, position_ids=positions, use_cache=False)
    finally:
        for one in hooks:
            one.remove()
    return {
        at for at in given if torch.allclose(residuals[at] + given[at], outputs[at], rtol=1e-3, atol=1e-4)
    }


def _keep_input(kept: dict[int, Tensor], at: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    kept[at] = inputs[0]


def _keep_output(kept: dict[int, Tensor], at: int, _: nn.Module, __: Any, output: Tensor) -> None:
    kept[at] = output


def least_squares(inputs: Tensor, missing: Tensor, weights: Tensor) -> tuple[Tensor, float, float]:
    """The matrix (in, out) whose product with ``inputs`` comes nearest to ``missing``, each token weighted.

    inputs: (tokens, in); missing: (tokens, out); weights: (tokens, 1). The ridge is the one of :data:`RIDGES` that
    serves the last eighth of the tokens best; no change where none does. Returns the change, and the weighted square
    of what is missing on those tokens, before and after, per token.
    """
    cut = len(inputs) - max(1, int(len(inputs) * HELD_SHARE))

    def moments(part: slice) -> tuple[Tensor, Tensor]:
        weighted = inputs[part] * weights[part]
        return (weighted.T @ inputs[part]).double(), (weighted.T @ missing[part]).double()

    gram, cross = moments(slice(0, cut))
    held_gram, held_cross = moments(slice(cut, None))
    tokens = len(inputs) - cut
    before = float((missing[cut:].square() * weights[cut:]).sum()) / tokens

    def solved(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
        energy = gram.diagonal()
        damped = gram + torch.diag(ridge * energy + 1e-6 * energy.mean())
        return torch.cholesky_solve(cross, torch.linalg.cholesky(damped))

    def cost(change: Tensor) -> float:
        return float((change * (held_gram @ change)).sum() - 2 * (change * held_cross).sum()) / tokens

    best, gain = None, 0.0
    for ridge in RIDGES:
        if (found := cost(solved(gram, cross, ridge))) < gain:
            best, gain = ridge, found
    if best is None:
        return torch.zeros(inputs.shape[1], missing.shape[1]), before, before
    change = solved(gram + held_gram, cross + held_cross, best)
    return change.to(inputs.dtype), before, before + gain
