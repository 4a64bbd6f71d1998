"""llama.cpp itself, from its wheel, in a process of its own (llamacpp_child): what it predicts and how it splits text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.evaluate.logits import torch_logits

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Said:
    """``logprobs``: float64 (vocab) after each prompt, None where its first token is half a character or an end.

    ``ids``: of each text.
    """

    logprobs: list[np.ndarray | None]
    ids: list[list[int]]


def ask(
    file: Path, prompts: Sequence[list[int]] = (), texts: Sequence[str] = (), context: int = 1024
) -> Said:
    """What llama.cpp says of a GGUF file."""
    request = {"prompts": list(prompts), "texts": list(texts), "context": context}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.llamacpp_child", str(file)],
        input=json.dumps(request),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, f"llama.cpp does not read {file.name}:\n{done.stderr[-3000:]}"
    said = json.loads(lines[-1])
    return Said([row and np.array(row) for row in said["logprobs"]], said["ids"])


def apart(file: Path, model: Any, prompts: Sequence[list[int]]) -> float:
    """The largest KL in nats of llama.cpp's prediction after one of ``prompts`` from torch's."""
    found = []
    for prompt, row in zip(prompts, ask(file, prompts).logprobs, strict=True):
        if row is None:
            continue
        (logits,) = torch_logits(model, np.array([prompt]))
        expected = torch.from_numpy(logits[-1]).double().log_softmax(-1).numpy()
        found.append(float((np.exp(expected) * (expected - row)).sum()))
    assert len(found) >= 2, "nearly every prompt went on with half a character"
    return max(found)
