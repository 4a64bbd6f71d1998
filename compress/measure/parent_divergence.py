"""Perplexity, divergence from the parent and agreement with it, on the held-out text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.measure.parity import mean_divergence
from everlearn.processes.child import answer
from everlearn.progress import Progress
from train.evaluate.comparison import compare
from train.evaluate.held_out_text import WINDOW, held_out_text, token_windows, tokens_at_once
from train.evaluate.logits import onnx_logits, torch_logits

if TYPE_CHECKING:
    import numpy as np

    from compress.quantize.matrices import Matrices

FLOAT32 = 1
"""MatMulNBits' accuracy level whose inputs are not rounded."""
KEY_SCALE = 12
"""Input of GroupQueryAttention; that of the values follows."""
KEPT_IN_INT8 = ("kv_cache_bit_width", "k_quant_type", "v_quant_type")
"""Its attributes that say so."""


BEYOND = 64
"""Tokens after the widest window of attention that the gate reads, too."""
FARTHEST = 4096 + BEYOND
MOST_LOGITS = 300_000_000
"""Of the window that reaches so far: numbers, 1.2 GB in float32 (1,088 tokens of Gemma 3 are fewer)."""


def keep_reference(
    parent: Path, tokens: int, file: Path, progress: Progress, far: Path | None = None
) -> None:
    """What the parent predicts for the held-out text, in a file: what reads it needs no torch. ``far``: :func:`keep_far`."""
    from compress.quantize.mapped import mapped_causal_lm

    windows = held_windows(parent, tokens)
    model = mapped_causal_lm(parent)
    keep_logits(
        counted("asking the parent", torch_logits(model, windows), windows, progress), len(windows), file
    )
    if far:
        keep_far(model, parent, far)


def keep_carried(
    parent: Path, tokens: int, matrices: Matrices, shared: bool, file: Path, far: Path, progress: Progress
) -> None:
    """What the parent's own code predicts for the first window with the rounded ``matrices``, in a file.

    ``shared``: whether the embedding is the matrix of the output layer. ``far``: :func:`keep_far`.
    """
    from compress.quantize.mapped import computing_with, mapped_causal_lm

    window = held_windows(parent, tokens)[:1]
    model = mapped_causal_lm(parent)
    names = {module: name for name, module in model.named_modules() if name in matrices}
    if shared:
        names[model.get_input_embeddings()] = names[model.get_output_embeddings()]
    progress("asking the parent with the rounded weights", None)

    def rounded(module: Any, _: object) -> Any:
        return matrices[names[module]].weight()[:, : module.weight.shape[1]]  # zeros fill the last block

    with computing_with(names, rounded):
        keep_logits(torch_logits(model, window), 1, file)
        keep_far(model, parent, far)


def keep_far(model: Any, parent: Path, file: Path) -> None:
    """What ``model`` predicts after the window of attention that config.json names, in a file.

    ``windows``: int64 (1, tokens); ``logits`` of its last tokens: float32 (BEYOND, vocab).

    Writes nothing where the windows of the held-out text reach that far, and where none can be read that does: its context
    ends before, or it is longer than :data:`FARTHEST` or predicts more than :data:`MOST_LOGITS`.
    """
    import numpy as np

    config = model.config
    length = (getattr(config, "sliding_window", None) or 0) + BEYOND
    context = tokens_at_once(config.to_dict()) or length
    if WINDOW < length <= min(context, FARTHEST) and length * config.vocab_size <= MOST_LOGITS:
        windows = held_windows(parent, length, length)
        (logits,) = torch_logits(model, windows)
        np.savez(file, windows=windows, logits=logits[-BEYOND:])


def far_divergence(export: Path, file: Path) -> float:
    """How far ``export`` in float32 is from what :func:`keep_far` kept, nats per token; 0 where it kept nothing."""
    import numpy as np

    if not file.exists():
        return 0.0
    kept = np.load(file)
    (logits,) = onnx_logits(export, kept["windows"], in_float32(export))
    return mean_divergence(iter([kept["logits"]]), iter([logits[-BEYOND:]]), kept["windows"][:, -BEYOND:])


def measure_export(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The child: the fields of ``train.evaluate.comparison.Comparison`` of an export in onnxruntime, beside the kept reference.

    Of the first window, beside torch with the same weights: ``graph``, in float32 and where it is more that of
    :func:`far_divergence`, and ``kernels``, as it is served; mean KL in nats per token. onnxruntime takes one and a half times the export's size. In a process of its own that is
    all there is.
    """
    import numpy as np

    export = Path(request["export"])
    windows = held_windows(Path(request["parent"]), request["tokens"])
    reference = np.load(request["reference"], mmap_mode="r")
    carried = np.load(request["carried"], mmap_mode="r")[:1]
    progress("checking the graph", None)
    graph = mean_divergence(iter(carried), onnx_logits(export, windows[:1], in_float32(export)), windows[:1])
    far = far_divergence(export, Path(request["far"]))
    kernels: list[float] = []

    def served() -> Iterator[np.ndarray]:
        for logits in onnx_logits(export, windows):
            if not kernels:
                kernels.append(mean_divergence(iter(carried), iter([logits]), windows[:1]))
            yield logits

    compared = asdict(compare(iter(reference), counted("measuring", served(), windows, progress), windows))
    return {**compared, "graph": float(np.max([graph, far])), "kernels": kernels[0]}


def in_float32(export: Path) -> bytes:
    """The graph of a decoder where nothing but its weights is rounded, neither what they are multiplied with nor keys
    and values that are kept; the weights stay in their file.
    """
    import onnx

    model = onnx.load(export / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            (level,) = (one for one in node.attribute if one.name == "accuracy_level")
            level.i = FLOAT32
        elif node.op_type == "GroupQueryAttention":
            del node.input[KEY_SCALE:]
            others = [one for one in node.attribute if one.name not in KEPT_IN_INT8]
            del node.attribute[:]
            node.attribute.extend(others)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT8:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return model.SerializeToString()


def counted(
    label: str, logits: Iterator[np.ndarray], windows: np.ndarray, progress: Progress
) -> Iterator[np.ndarray]:
    """``logits``, each of which is progress."""
    progress(label, 0.0)
    for done, one in enumerate(logits, start=1):
        yield one
        progress(label, done / len(windows))


def keep_logits(logits: Iterator[np.ndarray], rows: int, file: Path) -> np.ndarray:
    """Logits on disk, as a view of the file: float32 (rows, window, vocab)."""
    import numpy as np

    first = next(logits)
    kept = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(rows, *first.shape))
    kept[0] = first
    for at, one in enumerate(logits, start=1):
        kept[at] = one
    return kept


def held_windows(parent: Path, tokens: int, window: int = WINDOW) -> np.ndarray:
    """The first ``tokens`` tokens of the held-out text: int64 (windows, window)."""
    return token_windows(parent / "tokenizer.json", held_out_text().text, tokens, window)


def measure(
    parent: Path, windows: np.ndarray, logits: Iterator[np.ndarray], progress: Progress
) -> dict[str, Any]:
    """logits: float32 (window, vocab) for each of ``windows``, of the compressed model."""
    from compress.quantize.mapped import mapped_causal_lm

    reference = torch_logits(mapped_causal_lm(parent), windows)
    return asdict(compare(reference, counted("measuring", logits, windows, progress), windows))


def quality_metrics(compared: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a bundle, from the fields of ``train.evaluate.comparison.Comparison``."""
    text = held_out_text()
    return {
        "perplexity": round(compared["perplexity"], 3),
        "parent_perplexity": round(compared["reference_perplexity"], 3),
        "perplexity_ratio": round(compared["perplexity"] / compared["reference_perplexity"], 4),
        "divergence": round(compared["divergence"], 5),
        "agreement": round(compared["agreement"], 4),
        "tokens": compared["tokens"],
        "held_text": {"name": text.name, "sha256": text.sha256},
    }


if __name__ == "__main__":
    answer(measure_export)
