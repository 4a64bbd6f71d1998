"""Whether this machine computes a version as it should: the probes of its edge.json, run by onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.updates.release import MANIFEST
from everlearn.errors import Corrupt

TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
}


def refuse_other_logits(folder: Path) -> None:
    """Raises Corrupt where a probe's logits differ by more than the manifest's bound, or another token comes first.

    Where the two most likely tokens are no further apart than the bound, either may come first.
    """
    import numpy as np

    manifest = json.loads((folder / MANIFEST).read_bytes())
    session, bound = opened(folder / "model.onnx"), manifest["bound"]
    for probe in manifest["probes"]:
        expected = np.array(probe["top_logits"], np.float32)
        logits = last_logits(session, probe["token_ids"])
        difference = float(np.abs(logits[probe["top_ids"]] - expected).max())
        clear = len(expected) > 1 and expected[0] - expected[1] > bound
        if not difference <= bound or (clear and int(logits.argmax()) != probe["top_ids"][0]):
            raise Corrupt(
                f"{folder.name}: logits differ by {difference:.3g} from those of its manifest, and {bound} is allowed"
            )


def opened(graph: Path) -> Any:
    """Raises Corrupt where onnxruntime does not load the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 (onnxruntime's errors share no other base)
        raise Corrupt(
            f"onnxruntime {onnxruntime.__version__} does not load {graph}: {str(error)[:300]}"
        ) from None


def last_logits(session: Any, token_ids: list[int]) -> Any:
    """float32 (vocabulary,) after the last token."""
    import numpy as np

    feeds = {
        "input_ids": np.array([token_ids], np.int64),
        "attention_mask": np.ones((1, len(token_ids)), np.int64),
    }
    for one in session.get_inputs():
        if one.name not in feeds:  # of the past, and there is none: (batch, kv_heads, 0, head_size)
            feeds[one.name] = np.zeros((1, one.shape[1], 0, one.shape[3]), TYPES[one.type])
    known = {one.name for one in session.get_inputs()}
    (logits,) = session.run(["logits"], {name: value for name, value in feeds.items() if name in known})
    return logits[0, -1].astype(np.float32)
