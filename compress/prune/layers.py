"""Drop whole layers: find those that are missed least, and build the smaller model of the same kind.

It is dense, so every engine runs it. It loses much, most of which a short distillation from the unpruned model brings back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from compress.quantize.sensitivity import TRIAL_TOKENS, divergence, log_probabilities
from compress.recipe import Prune
from everlearn.errors import InvalidInput

OnPart = Callable[[int, int], None]
"""Called after each trial, or layer, with (done, in all)."""


def layers_of(model: Any) -> nn.ModuleList:
    """The model's layers."""
    return next(part for part in model.modules() if isinstance(part, nn.ModuleList))


def with_layers(model: Any, kept: Sequence[int]) -> Any:
    """A model of the same kind with some of the layers, in that order; weights are copies.

    Raises InvalidInput unless there are fewer of them, and at least one.
    """
    config = deepcopy(model.config)
    depth = config.num_hidden_layers
    if not 1 <= len(kept) < depth:
        raise InvalidInput(f"{len(kept)} layers were asked for; the model has {depth}", param="layers")
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[at] for at in kept]
    prefix = next(name for name, part in model.named_modules() if isinstance(part, nn.ModuleList)) + "."
    place = {str(old): str(new) for new, old in enumerate(kept)}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(prefix):
            old, _, rest = name.removeprefix(prefix).partition(".")
            if old not in place:
                continue
            name = f"{prefix}{place[old]}.{rest}"
        state[name] = tensor
    return of_config(model, config, state)


def of_config(model: Any, config: Any, state: dict[str, Tensor]) -> Any:
    """A model of ``model``'s class with another config and these weights."""
    smaller = type(model)(config)
    smaller.load_state_dict(state)
    return smaller.eval()


def evenly_spaced(layers: int, depth: int) -> list[int]:
    """``layers`` of ``depth``, the first and the last among them."""
    return [round(at * (depth - 1) / max(1, layers - 1)) for at in range(layers)]


@torch.no_grad()
def block_influence(model: Any, ids: Tensor) -> list[float]:
    """How much each layer turns its input: 1 - cosine of what goes in and what comes out (arXiv 2403.03853).

    ids: int64 (rows, seq).
    """
    turned: list[float] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        after = output[0] if isinstance(output, tuple) else output
        turned.append(1 - nn.functional.cosine_similarity(inputs[0], after, dim=-1).mean().item())

    hooks = [layer.register_forward_hook(hook) for layer in layers_of(model)]
    try:
        model.get_decoder()(input_ids=ids, use_cache=False)
    finally:
        for one in hooks:
            one.remove()
    return turned


@torch.no_grad()
def least_missed(model: Any, ids: Tensor, drop: int, on_part: OnPart | None = None) -> list[int]:
    """Which of a decoder's layers to drop, in this order: those whose absence changes the predictions least.

    ids: int64 (windows, seq), of which the beginning of the last is read. Change is KL from the whole model's
    predictions.
    """
    ids = ids[-1:, :TRIAL_TOKENS]
    whole = log_probabilities(model, ids)
    return cheapest(layers_of(model), lambda: divergence(whole, model, ids), drop, on_part)


def cheapest(
    layers: Sequence[nn.Module], cost: Callable[[], float], drop: int, on_part: OnPart | None = None
) -> list[int]:
    """Which layers to drop, one after the other the one without which ``cost`` is least, with all that went before gone."""
    depth, dropped = len(layers), list[int]()
    trials = sum(depth - gone for gone in range(drop))
    done = 0
    for _ in range(drop):
        costs: dict[int, float] = {}
        for at in range(depth):
            if at in dropped:
                continue
            with skipped([layers[one] for one in (*dropped, at)]):
                costs[at] = cost()
            done += 1
            if on_part:
                on_part(done, trials)
        dropped.append(min(costs, key=costs.__getitem__))
    return dropped


def chosen_layers(wanted: Prune, depth: int, missed: Callable[[int], list[int]]) -> list[int]:
    """Those to go of ``depth``, sorted: as named, or as ``missed`` answers how many. Raises InvalidInput."""
    gone = sorted(set(wanted.drop))
    if unknown := [one for one in gone if not 0 <= one < depth]:
        raise InvalidInput(
            f"there is no layer {unknown[0]}: the model's {depth} are 0 to {depth - 1}", param="drop"
        )
    if wanted.layers is None:
        return gone
    if not wanted.layers < depth:
        raise InvalidInput(f"{wanted.layers} layers are to stay; the model has {depth}", param="layers")
    return sorted(missed(depth - wanted.layers))


class skipped:
    """While it lasts, these layers hand on what they get."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = layers

    def __enter__(self) -> None:
        for layer in self.layers:
            layer.forward = lambda hidden, *_, **__: hidden  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            del layer.forward
