"""Logits that every runtime must reproduce: computed by native onnxruntime from the very folder.

WebGPU drivers, phones' CPUs and new versions of a runtime have been seen to compute other numbers without an error. So
a device compares a handful at load, and does not serve a folder that it computes otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from deploy.edge.manifest import GRAPH, DecoderGraph, DecoderProbe
from deploy.edge.targets import LOGITS, PAST
from everlearn.errors import Unsupported

PROMPTS = (
    "The capital of France is",
    "def add(a, b):\n    return",
    "Water boils at a temperature of 100 degrees",
    "Once upon a time, there was a little",
)
TOP = 8
DIGITS = 5
DEQUANTIZE_ONCE = {"session.disable_quant_qdq": "1"}


def open_native(graph: Path, entries: dict[str, str]) -> ort.InferenceSession:
    """A session on this machine's CPU, on one thread. Raises Unsupported where onnxruntime does not load the graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 (onnxruntime's errors share no other base)
        raise Unsupported(
            f"onnxruntime {ort.__version__} does not load {graph}: {str(error)[:600]}"
        ) from None


def decoder_probes(directory: Path, graph: DecoderGraph, entries: dict[str, str]) -> list[DecoderProbe]:
    """The probes of a decoder's folder."""
    session = open_native(directory / GRAPH, entries)
    tokenizer: Any = Tokenizer.from_file(str(directory / "tokenizer.json"))
    found: list[DecoderProbe] = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        logits = last_logits(session, graph, ids)
        top = np.argsort(-logits, kind="stable")[:TOP]
        values = [round(float(logits[one]), DIGITS) for one in top]
        found.append(DecoderProbe(token_ids=ids, top_ids=[int(one) for one in top], top_logits=values))
    return found


def last_logits(session: ort.InferenceSession, graph: DecoderGraph, ids: list[int]) -> np.ndarray:
    """float32 (vocabulary,) after the last of ``ids``."""
    nothing = np.zeros((1, graph.kv_heads, 0, graph.head_size), graph.cache)
    feeds = {one.name: nothing for one in session.get_inputs() if one.name.startswith(PAST)}
    feeds["input_ids"] = np.array([ids], np.int64)
    feeds["attention_mask"] = np.ones((1, len(ids)), np.int64)
    (logits,) = session.run([LOGITS], feeds)
    return np.asarray(logits)[0, -1].astype(np.float32)
