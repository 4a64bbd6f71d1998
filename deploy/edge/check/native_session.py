"""Sessions of native onnxruntime, in a process of its own: ``python native_session.py < request.json > answer.json``.

numpy and onnxruntime are all it imports, so that it runs on an emulated CPU as well. The request names either
``operators``, graphs that are to load, or ``graphs`` with ``prompts``; web_session.js answers the same requests.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

STATUS = Path("/proc/self/status")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """``failures`` by graph; or of a model its ``outputs`` for each prompt, ``tokens_per_s`` and ``peak_bytes``."""
    said: dict[str, Any] = {"runtime": ort.__version__, "failures": {}}
    for graph in request.get("operators", []):
        try:
            open_session(graph, {})
        except Exception as error:  # noqa: BLE001 (onnxruntime's errors share no other base)
            said["failures"][graph] = str(error)
    if "graphs" in request:
        started = time.perf_counter()
        sessions = [open_session(graph, request["session"]) for graph in request["graphs"]]
        said["load_s"] = time.perf_counter() - started
        run: Any = {"generate": run_decoder, "text2text": run_answers}.get(request["task"], run_encoder)
        said |= run(*sessions, request)
        said["peak_bytes"] = peak_bytes()
    return said


def open_session(graph: str, entries: dict[str, str]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run_decoder(session: ort.InferenceSession, request: dict[str, Any]) -> dict[str, Any]:
    """``outputs``: of each prompt the largest logits after its last token, or those of the ids that it asks for."""
    outputs: list[dict[str, Any]] = []
    for prompt in request["prompts"]:
        logits, _ = step(session, request, prompt["token_ids"], nothing(session, request), 0)
        top = np.argsort(-logits, kind="stable")[: request["top"]]
        ids = prompt.get("ids") or [int(one) for one in top]
        outputs.append({"ids": ids, "values": [float(logits[one]) for one in ids], "best": int(top[0])})
    return {"outputs": outputs, "tokens_per_s": decoding_speed(session, request)}


def decoding_speed(session: ort.InferenceSession, request: dict[str, Any]) -> float:
    """Tokens per second, one after the other, by the median step."""
    ids = request["prompts"][0]["token_ids"]
    past, total = nothing(session, request), 0
    steps: list[float] = []
    for _ in range(request["steps"] + 1):
        started = time.perf_counter()
        logits, past = step(session, request, ids, past, total)
        steps.append(time.perf_counter() - started)
        total += len(ids)
        ids = [int(logits.argmax())]
    return 1 / float(np.median(steps[1:]))


def step(
    session: ort.InferenceSession, request: dict[str, Any], ids: list[int], past: dict[str, Any], total: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """float32 (vocabulary,) after ``ids``, which follow ``total`` tokens; and the past that they belong to."""
    feeds = dict(past)
    feeds["input_ids"] = np.array([ids], np.int64)
    feeds["attention_mask"] = np.ones((1, total + len(ids)), np.int64)
    names = [one.name for one in session.get_outputs()]
    made = dict(zip(names, session.run(None, feeds), strict=True))
    logits = np.asarray(made.pop("logits"))[0, -1].astype(np.float32)
    return logits, {name.replace("present.", "past_key_values."): value for name, value in made.items()}


def nothing(session: ort.InferenceSession, request: dict[str, Any]) -> dict[str, Any]:
    """Keys and values of no token: (1, kv_heads, 0, head_size) each."""
    shape = request["shape"]
    empty = np.zeros((1, shape["kv_heads"], 0, shape["head_size"]), shape["cache"])
    return {one.name: empty for one in session.get_inputs() if one.name.startswith("past_key_values.")}


def run_answers(
    encoder: ort.InferenceSession, decoder: ort.InferenceSession, request: dict[str, Any]
) -> dict[str, Any]:
    """``outputs``: of each source the largest logits behind its ``answer_ids``, as :func:`run_decoder` has them."""
    outputs: list[dict[str, Any]] = []
    for prompt in request["prompts"]:
        state = read_source(encoder, decoder, request, prompt["token_ids"])
        for token in prompt["answer_ids"]:
            logits = next_logits(decoder, request, state, token)
        top = np.argsort(-logits, kind="stable")[: request["top"]]
        ids = prompt.get("ids") or [int(one) for one in top]
        outputs.append({"ids": ids, "values": [float(logits[one]) for one in ids], "best": int(top[0])})
    steps: list[float] = []
    for _ in range(request["steps"]):
        started = time.perf_counter()
        logits = next_logits(decoder, request, state, int(logits.argmax()))
        steps.append(time.perf_counter() - started)
    return {"outputs": outputs, "tokens_per_s": 1 / float(np.median(steps))}


def read_source(
    encoder: ort.InferenceSession, decoder: ort.InferenceSession, request: dict[str, Any], ids: list[int]
) -> dict[str, Any]:
    """The decoder's inputs before an answer's first token."""
    source = np.array([ids], np.int64)
    mask = np.ones_like(source)
    names = [one.name for one in decoder.get_inputs()]
    crossed = encoder.run(None, {"input_ids": source, "attention_mask": mask})
    shape = request["shape"]
    empty = np.zeros((1, shape["heads"], 0, shape["head_size"]), np.float32)
    looked_up = zip([name for name in names if ".encoder." in name], crossed, strict=True)
    return {
        "encoder_attention_mask": mask,
        **dict(looked_up),
        **{name: empty for name in names if ".decoder." in name},
    }


def next_logits(
    decoder: ort.InferenceSession, request: dict[str, Any], state: dict[str, Any], token: int
) -> np.ndarray:
    """float32 (vocabulary,) after one token more of an answer, which ``state`` then holds."""
    logits, *past = decoder.run(None, {"input_ids": np.array([[token]], np.int64), **state})
    state.update(zip([name for name in state if ".decoder." in name], past, strict=True))
    row = np.array(logits, np.float32)[0, -1]
    row[request["shape"]["never"]] = -np.inf
    return row


def run_encoder(session: ort.InferenceSession, request: dict[str, Any]) -> dict[str, Any]:
    """``outputs``: the first numbers of each of the graph's for each text. Speed is of one as long as ``context``."""
    names, top = request["outputs"], request["top"]
    outputs: list[dict[str, Any]] = []
    for prompt in request["prompts"]:
        made = encode(session, names, prompt["token_ids"], prompt.get("type_ids"))
        outputs.append({"values": [float(value) for one in made for value in one.reshape(-1)[:top]]})
    ids = request["prompts"][0]["token_ids"]
    long = (ids * request["context"])[: request["context"]]
    encode(session, names, long)
    started = time.perf_counter()
    encode(session, names, long)
    return {"outputs": outputs, "tokens_per_s": len(long) / (time.perf_counter() - started)}


def encode(
    session: ort.InferenceSession, names: list[str], ids: list[int], types: list[int] | None = None
) -> list[np.ndarray]:
    """What the graph says of one text by each of ``names``: float32 (1, …) each."""
    given = {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "token_type_ids": np.array([types or [0] * len(ids)], np.int64),
    }
    feeds = {one.name: given[one.name] for one in session.get_inputs()}
    return [np.asarray(one) for one in session.run(names, feeds)]


def peak_bytes() -> int:
    """The most this process has held at once; 0 where the system does not say."""
    said = STATUS.read_text() if STATUS.is_file() else ""
    return int(said.partition("VmHWM:")[2].split()[0]) * 1024 if "VmHWM:" in said else 0


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
