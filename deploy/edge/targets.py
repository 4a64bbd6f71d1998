"""The table of targets and forms, which the command line, the builder, the checks and docs/edge.md read.

It imports nothing of weight, so that ``everlearn --help`` stays quick. After a change, ``python -m
tests.deploy.edge.tables`` writes it into docs/edge.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from everlearn.bundles.tasks import HEADED, Task

FormName = Literal["int4-qdq", "int4-matmulnbits", "int8-dynamic"]
Where = Literal["node", "native", "arm64"]

LOGITS = "logits"
"""A decoder graph's output, as onnxruntime-genai names it."""
PAST = "past_key_values."
"""What the names of its inputs of keys and values begin with."""
OUTPUTS: Mapping[Task, tuple[str, ...]] = {
    "embed": ("sentence_embedding",),
    "classify": (LOGITS,),
    "score": (LOGITS,),
    "token_classify": (LOGITS,),
    "question_answer": ("start_logits", "end_logits"),
}
"""What an encoder's graph computes, by its task."""
GRAPH = "model.onnx"
TWO_GRAPHS = ("encoder_model.onnx", "decoder_model.onnx")
"""An encoder-decoder's: a source is read once, an answer token by token."""


@dataclass(frozen=True)
class Form:
    """How weights are stored and multiplied. ``session``: onnxruntime's session configuration entries for it."""

    description: str
    session: Mapping[str, str]


FORMS: Mapping[FormName, Form] = {
    "int4-qdq": Form(
        "4 bits in blocks of 32 with a float16 scale each, dequantized to float32 once, at load",
        {"session.disable_quant_qdq": "1"},
    ),
    "int4-matmulnbits": Form("the same bytes, multiplied as they are by kernels of 4 bits", {}),
    "int8-dynamic": Form(
        "8 bits for each output channel, multiplied as integers; activations are rounded as they come, of decoders to two bytes",
        {"session.x64quantprecision": "1"},
    ),
}


@dataclass(frozen=True)
class Slow:
    """An operator that runs, and should not. ``instead``: what to do."""

    operator: str
    why: str
    instead: str


@dataclass(frozen=True)
class Runtime:
    """What runs a graph on a device, the version that everlearn checks with, and what is known of it.

    ``opset``: the newest of ONNX's own operators that its builds for all its devices open. ``process_bytes``: what a process of it holds without a model.
    """

    name: Literal["onnxruntime-web", "onnxruntime-genai"]
    version: str
    opset: int
    process_bytes: int
    slow: tuple[Slow, ...] = ()


@dataclass(frozen=True)
class EdgeTarget:
    """A kind of device.

    ``forms``: of each task, those that it runs well, the default first. ``context``: tokens that a device keeps at most.
    ``checked_by``: where a session of it runs on the machine that builds: in node, as a process, or as one of arm64.
    """

    runtime: Runtime
    forms: Mapping[Task, tuple[FormName, ...]]
    context: int
    checked_by: Where
    description: str


WASM_NBITS = Slow(
    "MatMulNBits",
    "WebAssembly has no kernel of 4 bits, so the whole matrix is dequantized at every token (12 times slower, measured)",
    "the form int4-qdq, which dequantizes once",
)
WEB = Runtime(
    "onnxruntime-web",
    "1.30.0",
    opset=26,
    process_bytes=265_000_000,
    slow=(
        WASM_NBITS,
        Slow(
            "MatMulBnb4",
            "it dequantizes the whole matrix at every token",
            "everlearn compress MODEL --to int4-onnx",
        ),
    ),
)
GENAI = Runtime(
    "onnxruntime-genai",
    "0.18.0",
    opset=26,
    process_bytes=73_000_000,
    slow=(
        Slow("MatMulBnb4", "it has no kernel for CPUs of its own", "everlearn compress MODEL --to int4-onnx"),
    ),
)
INT8: Mapping[Task, tuple[FormName, ...]] = dict.fromkeys(("embed", *HEADED, "text2text"), ("int8-dynamic",))
"""Of everything but decoders."""
NATIVE: Mapping[Task, tuple[FormName, ...]] = {"generate": ("int4-matmulnbits",), **INT8}

TARGETS: Mapping[str, EdgeTarget] = {
    "web": EdgeTarget(
        WEB,
        {"generate": ("int4-qdq", "int8-dynamic"), **INT8},
        2048,
        "node",
        "a page in any browser: WebAssembly, and WebGPU where it computes the same",
    ),
    "linux-x64": EdgeTarget(GENAI, NATIVE, 4096, "native", "Linux on x86-64 processors"),
    "linux-arm64": EdgeTarget(GENAI, NATIVE, 4096, "arm64", "Linux on 64-bit Arm, as a Raspberry Pi 4 or 5"),
    "android": EdgeTarget(GENAI, NATIVE, 2048, "arm64", "Android 10 and newer, 64-bit Arm"),
    "ios": EdgeTarget(GENAI, NATIVE, 2048, "arm64", "iOS 16 and newer"),
}


def graphs_of(task: str) -> tuple[str, ...]:
    """The names of a folder's graphs."""
    return TWO_GRAPHS if task == "text2text" else (GRAPH,)


def targets_table() -> list[str]:
    """The targets as docs/edge.md has them, line by line."""
    lines = [
        "| target | device | runtime | decoders | all others | tokens kept |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in TARGETS.items():
        runtime = f"{one.runtime.name} {one.runtime.version}"
        forms = (", ".join(f"`{form}`" for form in one.forms[task]) for task in ("generate", "embed"))
        lines.append(f"| `{name}` | {one.description} | {runtime} | {' | '.join(forms)} | {one.context} |")
    return lines


def forms_table() -> list[str]:
    """The forms, likewise."""
    rows = [f"| `{name}` | {form.description} |" for name, form in FORMS.items()]
    return ["| form | weights |", "|---|---|", *rows]
