"""The table of rounding methods, which recipes, the command line, the exporters and the docs read.

A method is a module of this folder with one function for each kind of target that it rounds weights for:

- ONNX targets: ``quantize_model(model, ids, matrices, on_layer, *, bits)`` adds every linear layer, quantized, to
  ``matrices``; see :func:`compress.quantize.rtn.quantize_model`.
- ``w4a16``: ``modifiers(scheme)`` gives llmcompressor's recipe; see :func:`compress.quantize.rtn.modifiers`.

The module is imported in the process that quantizes, and this table imports nothing of weight. CONTRIBUTING.md has a worked
example of a new one.
"""

from __future__ import annotations

from dataclasses import dataclass

from compress.targets.table import TARGETS


@dataclass(frozen=True)
class Method:
    """A way to round weights: which ``module`` has it, and the ``targets`` whose weights it can round.

    ``calibrated``: whether ``ids`` are the calibration set's tokens, and not None. ``high_precision_fraction``: where the
    target lets layers keep more bits, the share of the weights that do unless the recipe says otherwise. ``keeps_scales``:
    whether ``quantize_model`` takes ``scales``, and rounds to those of another version instead of finding its own.
    """

    module: str
    targets: tuple[str, ...]
    description: str
    calibrated: bool = True
    high_precision_fraction: float = 0.0
    keeps_scales: bool = False


METHODS: dict[str, Method] = {
    "rtn": Method("compress.quantize.rtn", tuple(TARGETS), "to nearest", calibrated=False, keeps_scales=True),
    "gptq": Method(
        "compress.quantize.gptq",
        ("int4-onnx", "w4a16"),
        "GPTQ ([arXiv 2210.17323](https://arxiv.org/abs/2210.17323)): each column's error is moved onto the columns "
        "not yet rounded",
        high_precision_fraction=0.1,
        keeps_scales=True,
    ),
    "awq": Method(
        "compress.quantize.awq",
        ("w4a16",),
        "to nearest after AWQ ([arXiv 2306.00978](https://arxiv.org/abs/2306.00978)): the channels with large "
        "activations are scaled up before",
    ),
    "autoround": Method(
        "compress.quantize.autoround",
        ("w4a16",),
        "AutoRound ([arXiv 2309.05516](https://arxiv.org/abs/2309.05516)): 200 steps of training per layer decide which "
        "way to round; three minutes for SmolLM2 on one H200, hours on a CPU",
    ),
}
DEFAULT_METHOD = "rtn"


def methods_for(target: str) -> tuple[str, ...]:
    """The names of the methods that can round ``target``'s weights."""
    return tuple(name for name, method in METHODS.items() if target in method.targets)


def targets_with_a_choice() -> tuple[str, ...]:
    """The targets whose weights more than one method rounds."""
    return tuple(target for target in TARGETS if len(methods_for(target)) > 1)


def default_high_precision_fraction(target: str, method: str) -> float:
    """The share of the weights that keep more bits, where a recipe does not say; 0 for names that are not there."""
    if target not in TARGETS or method not in METHODS or not TARGETS[target].high_precision:
        return 0.0
    return max(TARGETS[target].high_precision_fraction, METHODS[method].high_precision_fraction)


def methods_table() -> list[str]:
    """The methods as docs/compressing.md has them, line by line."""
    lines = ["| `weights` | how it rounds | of | reads the calibration set |", "|---|---|---|---|"]
    for name, method in METHODS.items():
        targets = (
            "every target"
            if method.targets == tuple(TARGETS)
            else ", ".join(f"`{one}`" for one in method.targets)
        )
        lines.append(
            f"| `{name}` | {method.description} | {targets} | {'yes' if method.calibrated else 'no'} |"
        )
    return lines
