"""Logits of token windows, by torch from safetensors and by onnxruntime from ONNX."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.cpu_features import make_exact
from everlearn.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np


def torch_logits(model: Any, windows: np.ndarray) -> Iterator[np.ndarray]:
    """Logits of each window, float32 (window, vocab), from a transformers causal language model."""
    import torch

    for ids in windows:
        with torch.inference_mode():
            logits = model(
                input_ids=torch.from_numpy(ids)[None], use_cache=False
            ).logits  # (1, window, vocab)
        yield logits[0].numpy()


def onnx_logits(model_dir: Path, windows: np.ndarray, graph: bytes | None = None) -> Iterator[np.ndarray]:
    """Logits of each window, float32 (window, vocab), from a decoder in the ONNX GenAI layout.

    The cache inputs are empty: every window is one prefill. ``graph``: to run instead of the directory's own, with the
    weights that lie there.
    """
    import numpy as np
    import onnxruntime

    decoder = json.loads((model_dir / "genai_config.json").read_text())["model"]["decoder"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    make_exact(options)
    options.enable_cpu_mem_arena = False  # which grows by doubling, and keeps what it has
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model_dir))
    session = onnxruntime.InferenceSession(
        graph or str(model_dir / decoder["filename"]), options, providers=["CPUExecutionProvider"]
    )
    specs = session.get_inputs()
    for ids in windows:
        feeds = {spec.name: _prefill_input(spec, ids, decoder) for spec in specs}
        (logits,) = session.run(["logits"], feeds)  # (1, window, vocab)
        yield np.asarray(logits[0], dtype=np.float32)


def _prefill_input(spec: Any, ids: np.ndarray, decoder: dict[str, Any]) -> np.ndarray:
    import numpy as np

    if spec.name == "input_ids":
        return ids[None]
    if spec.name == "attention_mask":
        return np.ones((1, len(ids)), dtype=np.int64)
    if spec.name == "position_ids":
        return np.arange(len(ids), dtype=np.int64)[None]
    if spec.name.startswith("past_key_values."):
        dtype = {"tensor(float16)": np.float16, "tensor(int8)": np.int8}.get(spec.type, np.float32)
        return np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), dtype=dtype)
    raise InvalidInput(f"the decoder asks for an input that is not known here: {spec.name}")
