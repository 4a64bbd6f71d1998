"""A graph in onnxruntime, or one sentence that says why it does not run here."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from everlearn.errors import ConfigError
from everlearn.memory import physical_bytes

WEIGHTS = (".onnx", ".data", ".onnx_data", ".bin")


def open_session(graph: Path | bytes, bundle: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    """``graph`` of ``bundle``. Raises ConfigError where the machine is too small for it, or onnxruntime too old."""
    size = sum(file.stat().st_size for file in bundle.iterdir() if file.name.endswith(WEIGHTS))
    if size > physical_bytes():
        raise ConfigError(
            f"the model's weights take {size / 1e9:.1f} GB and this machine has {physical_bytes() / 1e9:.1f} GB "
            "of memory: serve a smaller version, or use a larger machine"
        )
    try:
        loaded = graph if isinstance(graph, bytes) else str(graph)
        return ort.InferenceSession(loaded, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 (onnxruntime's errors share no other base)
        raise ConfigError(
            f"onnxruntime {ort.__version__} does not load the model's graph: {str(error)[:600]}. Upgrade onnxruntime "
            "where it is older than the one that the model was made for, or compress its parent again"
        ) from None
