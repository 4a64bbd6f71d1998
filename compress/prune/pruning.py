"""Fewer weights: whole layers, feed-forward columns or attention heads taken out, or single weights set to zero.

All but the last make a smaller dense model that every engine runs; they lose much, most of which a short distillation
from the unpruned model brings back. Zeros make no file smaller and no engine here faster: they are for hardware
that skips them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from compress.quantize.capture import capture_inputs
from compress.quantize.sensitivity import TRIAL_TOKENS, divergence, log_probabilities
from compress.recipe import Prune
from everlearn.errors import InvalidInput, Unsupported

OnPart = Callable[[int, int], None]
"""Called after each trial, or layer, with (done, in all)."""

FFN_MULTIPLE = 32
"""Widths stay multiples of a quantizer's block."""


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


@torch.no_grad()
def narrow_ffn(model: Any, width: int, ids: Tensor, on_part: OnPart | None = None) -> Any:
    """A copy whose feed-forward layers have ``width`` columns: those that matter most on ``ids`` (rows, seq).

    Raises InvalidInput, Unsupported for another feed-forward layer.
    """
    config = deepcopy(model.config)
    before = getattr(config, "intermediate_size", None)
    layers = layers_of(model)
    if before is None or not all(
        hasattr(getattr(layer, "mlp", None), part)
        for layer in layers
        for part in ("gate_proj", "up_proj", "down_proj")
    ):
        raise Unsupported("ffn: the feed-forward layers of this architecture are not gate, up and down")
    if not FFN_MULTIPLE <= width < before or width % FFN_MULTIPLE:
        raise InvalidInput(
            f"ffn ({width}) must be a multiple of {FFN_MULTIPLE} below the model's {before}", param="ffn"
        )
    weighed = importance(model, [layer.mlp.down_proj for layer in layers], ids, on_part)  # type: ignore[union-attr]
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if name.endswith(".mlp"):
            kept = weighed[module.down_proj].topk(width).indices.sort().values
            for part in ("gate_proj", "up_proj"):
                for kind in ("weight", "bias"):
                    if f"{name}.{part}.{kind}" in state:
                        state[f"{name}.{part}.{kind}"] = state[f"{name}.{part}.{kind}"][kept]
            state[f"{name}.down_proj.weight"] = state[f"{name}.down_proj.weight"][:, kept]
    config.intermediate_size = width
    return of_config(model, config, state)


@torch.no_grad()
def narrow_attention(model: Any, kv_heads: int, ids: Tensor, on_part: OnPart | None = None) -> Any:
    """A copy whose attention has ``kv_heads`` heads of keys and values, with the queries' heads that read them.

    Those stay that matter most on ``ids`` (rows, seq), with all their columns. Raises InvalidInput, Unsupported for
    another attention.
    """
    config = deepcopy(model.config)
    layers = layers_of(model)
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    if not all(hasattr(getattr(layer, "self_attn", None), part) for layer in layers for part in parts):
        raise Unsupported(f"kv_heads: the attention of this architecture is not {', '.join(parts)}")
    heads, before = config.num_attention_heads, config.num_key_value_heads
    if not 1 <= kv_heads < before:
        raise InvalidInput(f"kv_heads ({kv_heads}) must be below the model's {before}", param="kv_heads")
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    weighed = importance(model, [layer.self_attn.o_proj for layer in layers], ids, on_part)  # type: ignore[union-attr]
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if not name.endswith(".self_attn"):
            continue
        best = weighed[module.o_proj].view(before, -1).sum(-1).topk(kv_heads).indices.sort().values
        for part in parts:
            columns = size if part in ("k_proj", "v_proj") else size * heads // before  # of a head of keys
            kept = (best[:, None] * columns + torch.arange(columns)).flatten()
            weight = state[f"{name}.{part}.weight"]
            state[f"{name}.{part}.weight"] = weight[:, kept] if part == "o_proj" else weight[kept]
            if part != "o_proj" and f"{name}.{part}.bias" in state:
                state[f"{name}.{part}.bias"] = state[f"{name}.{part}.bias"][kept]
    config.num_attention_heads, config.num_key_value_heads = heads // before * kv_heads, kv_heads
    config.head_dim = size
    return of_config(model, config, state)


def importance(
    model: Any, readers: Sequence[Any], ids: Tensor, on_part: OnPart | None = None
) -> dict[nn.Module, Tensor]:
    """For each of some linear layers how much each of its inputs matters on ``ids`` (rows, seq): float32 (in,).

    The mean size of the input times the norm of the weights that read it: Wanda's measure (arXiv 2306.11695) summed
    over a column.
    """
    found: dict[nn.Module, Tensor] = {}

    def weigh(module: nn.Linear, given: Tensor) -> None:
        found[module] = given.flatten(0, -2).abs().mean(0) * module.weight.norm(dim=0)
        if on_part:
            on_part(len(found), len(readers))

    with capture_inputs(readers, weigh):
        model.get_decoder()(input_ids=ids, use_cache=False)
    return found


@torch.no_grad()
def zero_smallest(model: Any, sparsity: float, two_of_four: bool) -> None:
    """Magnitude pruning in place: the smallest weights of each linear layer but the output layer become zero.

    ``two_of_four``: of every four neighbours along the input the two smallest, instead of a share of the layer.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            weight = module.weight
            if two_of_four:
                fours = weight.abs().view(len(weight), -1, 4)
                gone = torch.zeros_like(fours, dtype=torch.bool)
                gone.scatter_(-1, fours.topk(2, dim=-1, largest=False).indices, True)
                weight[gone.view_as(weight)] = 0
            else:
                sizes = weight.abs()
                smallest = sizes.flatten().kthvalue(max(1, round(sparsity * sizes.numel()))).values
                weight[sizes <= smallest] = 0


def share_of_zeros(model: Any) -> float:
    """Of the linear layers' weights, the output layer left out."""
    head = model.get_output_embeddings()
    weights = [
        module.weight for module in model.modules() if isinstance(module, nn.Linear) and module is not head
    ]
    return sum(int((one == 0).sum()) for one in weights) / sum(one.numel() for one in weights)
