"""A model whose weights stay in their file: what runs is in memory, in float32, and only while it runs.

safetensors maps a file instead of reading it, so the system takes pages back whenever it needs them: a model larger than
memory computes, layer after layer, and the numbers are those of the same model loaded in float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.models.load import load_causal_lm
from train.models.save import saved_dtype


def mapped_causal_lm(model_dir: Path) -> Any:
    """As ``train.models.load.load_causal_lm``, in no more memory than its largest matrix takes in float32."""
    model = load_causal_lm(model_dir, saved_dtype(model_dir)).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(lambda _module, _inputs, rows: rows.float())
        elif any(one.dtype != torch.float32 for one in module.parameters(recurse=False)):
            widen_while_running(module)
    return model


def give_back() -> None:
    """Freed memory goes back to the system: glibc keeps it where small allocations lie between, and asks for more."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def widen_while_running(module: nn.Module) -> None:
    """From here on ``module`` computes with float32 copies of its parameters, made when it is called."""
    own = dict(module.named_parameters(recurse=False))

    def widen(*_: Any) -> None:
        for name, parameter in own.items():
            module._parameters[name] = nn.Parameter(parameter.float(), requires_grad=False)

    def restore(*_: Any) -> None:
        module._parameters.update(own)

    module.register_forward_pre_hook(widen)
    module.register_forward_hook(restore, always_call=True)


@contextmanager
def computing_with(
    modules: Iterable[nn.Module], weight_of: Callable[[nn.Module, Tensor], Tensor]
) -> Iterator[None]:
    """Within, each of ``modules`` computes with ``weight_of(module, inputs)`` for its weight; none of them is changed."""
    kept: dict[nn.Module, nn.Parameter | None] = {}

    def take(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        weight = weight_of(module, inputs[0])
        kept[module] = module._parameters["weight"]
        module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)

    def restore(module: nn.Module, *_: Any) -> None:
        if module in kept:
            module._parameters["weight"] = kept.pop(module)

    hooks = [
        hook
        for module in modules
        for hook in (
            module.register_forward_pre_hook(take),
            module.register_forward_hook(restore, prepend=True, always_call=True),
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
