"""Runs graphs on whatever CPU this interpreter sees: ``run_graphs.py CASES.json RESULT.npz``.

numpy and onnxruntime are all it needs, so that it runs on an emulated CPU of another kind, too. A case is a graph, its
inputs in a file, and whether onnxruntime is told what everlearn tells it; outputs named ``present…`` are the next
step's ``past…``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from everlearn.cpu_features import instructions, make_exact


def main() -> None:
    cases, result = map(Path, sys.argv[1:])
    found = instructions()
    print(json.dumps({"machine": found.machine, "names": found.names, "meaning": found.meaning}))
    outputs: dict[str, np.ndarray] = {}
    for case in json.loads(cases.read_text()):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        if case["exact"]:
            make_exact(options)
        session = onnxruntime.InferenceSession(case["graph"], options, providers=["CPUExecutionProvider"])
        outputs[case["name"]] = np.concatenate(run_steps(session, dict(np.load(case["inputs"]))))
    np.savez(result, **outputs)


def run_steps(session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The first output of each step, its rows end to end; inputs: ``step.name``."""
    names = [one.name for one in session.get_outputs()]
    wanted = {one.name for one in session.get_inputs()}
    past: dict[str, Any] = {}
    made: list[np.ndarray] = []
    for step in sorted({name.partition(".")[0] for name in inputs}):
        feeds = {
            name.partition(".")[2]: value for name, value in inputs.items() if name.startswith(f"{step}.")
        }
        feeds |= past
        answers = dict(zip(names, session.run(None, {name: feeds[name] for name in wanted}), strict=True))
        past = {name.replace("present", "past_key_values"): value for name, value in answers.items()}
        made.append(answers[names[0]].reshape(-1, answers[names[0]].shape[-1]))
    return made


if __name__ == "__main__":
    main()
