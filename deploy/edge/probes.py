"""Logits that every runtime must reproduce: computed by native onnxruntime from the very folder.

WebGPU drivers, phones' CPUs and new versions of a runtime have been seen to compute other numbers without an error. So
a device compares a handful at load, and does not serve a folder that it computes otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from tokenizers import Tokenizer

from deploy.edge.check.sessions import native
from deploy.edge.manifest import (
    AnswerProbe,
    DecoderProbe,
    EdgeManifest,
    EncoderDecoderGraph,
    EncoderProbe,
    Graph,
    HeadProbe,
    Probe,
    Probes,
)
from deploy.edge.plan import round_nothing
from deploy.edge.targets import FORMS, GRAPH, OUTPUTS, FormName, graphs_of
from everlearn.bundles.tasks import HEADED, Task
from everlearn.errors import EverlearnError

TEXTS = (
    "The capital of France is",
    "def add(a, b):\n    return",
    "Water boils at a temperature of 100 degrees",
    "Once upon a time, there was a little",
)
PAIRED: tuple[Task, ...] = ("score", "question_answer")
"""Tasks whose models read two texts at once: these, each with the next one."""
ANSWER = 3
"""Tokens of an answer behind which logits are compared, besides those that every answer begins with."""
TOP = 8
STEPS = 16
"""Tokens decoded to measure speed."""
DIGITS = 5
LOGITS_BOUND = 0.1
LARGE_LOGITS = 0.02
"""The bound as a share of the largest logit, where that is more: an encoder's activations are rounded by their largest."""
EMBEDDING_BOUND = 0.01
"""A number of an embedding of 384 is about 0.05."""
ROUNDED = 2.0
"""Kernels that round what they multiply differ from each other by up to this many times what they differ from exact ones."""


class Differs(EverlearnError):
    """A runtime that computes something else than the folder's probes."""

    code = "differs"


def request_of(
    directory: Path,
    task: Task,
    form: FormName,
    graph: Graph,
    prompts: list[dict[str, Any]],
) -> dict[str, Any]:
    """What a session is asked, as deploy.edge.check.native_session has it."""
    return {
        "graphs": [str(directory.absolute() / name) for name in graphs_of(task)],
        "task": task,
        "outputs": OUTPUTS.get(task, ()),
        "session": dict(FORMS[form].session),
        "shape": graph.model_dump(),
        "context": graph.context,
        "prompts": prompts,
        "top": TOP,
        "steps": STEPS,
    }


def compute(directory: Path, task: Task, form: FormName, graph: Graph) -> tuple[Probes, float]:
    """The probes of a folder, and their bound.

    Where kernels round what they multiply (MatMulNBits with ``accuracy_level``), the probes are computed without, and
    the bound is twice what rounding changes here: kernels of other instruction sets round otherwise, and by as much.
    """
    prompts = prompts_of(directory, task, graph)
    request, here = request_of(directory, task, form, graph, prompts) | {"steps": 1}, native()
    if form != "int4-matmulnbits":
        probes = probes_of(here.ask(request), prompts)
        return probes, bound_of(probes)
    exact = directory / "exact.onnx"
    exact.write_bytes(without_rounding(directory / GRAPH))
    try:
        probes = probes_of(here.ask(request | {"graphs": [str(exact.absolute())]}), prompts)
    finally:
        exact.unlink()
    said = here.ask(request | {"prompts": asked(probes)})
    return probes, round(max(LOGITS_BOUND, ROUNDED * apart(said, probes)), 3)


def prompts_of(directory: Path, task: Task, graph: Graph) -> list[dict[str, Any]]:
    """Token ids of the texts, or of pairs of them, as the tokenizer marks them.

    Of an encoder-decoder, the beginning of an answer as well: the source's own, so that keys and values are computed.
    """
    tokenizer: Any = Tokenizer.from_file(str(directory / "tokenizer.json"))
    context = graph.context
    if isinstance(graph, EncoderDecoderGraph):
        sources = [tokenizer.encode(text).ids[:context] for text in TEXTS]
        return [{"token_ids": ids, "answer_ids": [*graph.first, *ids[:ANSWER]]} for ids in sources]
    if task not in HEADED:
        return [{"token_ids": tokenizer.encode(text).ids[:context]} for text in TEXTS]
    seconds = TEXTS[1:] + TEXTS[:1] if task in PAIRED else [None] * len(TEXTS)
    read = [tokenizer.encode(text, second) for text, second in zip(TEXTS, seconds, strict=True)]
    return [{"token_ids": one.ids[:context], "type_ids": one.type_ids[:context]} for one in read]


def bound_of(probes: Probes) -> float:
    """How far another runtime of the same form may be from what was computed here."""
    if isinstance(probes[0], EncoderProbe):
        return EMBEDDING_BOUND
    if isinstance(probes[0], DecoderProbe):
        return LOGITS_BOUND
    largest = max(abs(value) for one in probes for value in values_of(one))
    return round(max(LOGITS_BOUND, LARGE_LOGITS * largest), 3)


def without_rounding(graph: Path) -> bytes:
    """The graph with its MatMulNBits multiplying in float32."""
    model = onnx.load(str(graph), load_external_data=False)
    round_nothing(model)
    return model.SerializeToString()


def probes_of(said: dict[str, Any], prompts: list[dict[str, Any]]) -> Probes:
    def rounded(values: list[float]) -> list[float]:
        return [round(one, DIGITS) for one in values]

    pairs = list(zip(prompts, said["outputs"], strict=True))
    if "answer_ids" in prompts[0]:
        return [
            AnswerProbe(**prompt, top_ids=one["ids"], top_logits=rounded(one["values"]))
            for prompt, one in pairs
        ]
    if "ids" in said["outputs"][0]:
        return [
            DecoderProbe(**prompt, top_ids=one["ids"], top_logits=rounded(one["values"]))
            for prompt, one in pairs
        ]
    if "type_ids" in prompts[0]:
        return [HeadProbe(**prompt, logits=rounded(one["values"])) for prompt, one in pairs]
    return [
        EncoderProbe(token_ids=prompt["token_ids"], embedding=rounded(one["values"])) for prompt, one in pairs
    ]


def asked(probes: Probes) -> list[dict[str, Any]]:
    """The probes as prompts of a request: of decoders with the ids whose logits are wanted."""
    return [
        one.model_dump(include={"token_ids", "type_ids", "answer_ids"})
        | ({"ids": one.top_ids} if isinstance(one, DecoderProbe) else {})
        for one in probes
    ]


def apart(said: dict[str, Any], probes: Probes) -> float:
    """The largest absolute difference of a session's numbers from the probes'."""
    return max(
        abs(value - expected)
        for one, probe in zip(said["outputs"], probes, strict=True)
        for value, expected in zip(one["values"], values_of(probe), strict=True)
    )


def values_of(probe: Probe) -> list[float]:
    if isinstance(probe, DecoderProbe):
        return probe.top_logits
    return probe.logits if isinstance(probe, HeadProbe) else probe.embedding


def refuse_difference(said: dict[str, Any], manifest: EdgeManifest, on: str) -> float:
    """The largest difference from the manifest's probes. Raises Differs where a device must not serve the folder."""
    largest = apart(said, manifest.probes)
    if not largest <= manifest.bound:
        raise Differs(
            f"{on} computes other numbers than the probes say: {largest:.4f} apart, at most {manifest.bound:g} is "
            "accepted. A device must not serve this folder with that runtime"
        )
    for one, probe in zip(said["outputs"], manifest.probes, strict=True):
        if isinstance(probe, DecoderProbe):
            clear = probe.top_logits[0] - probe.top_logits[1] > manifest.bound
            if clear and one["best"] != probe.top_ids[0]:
                raise Differs(
                    f"{on} predicts the token {one['best']} after {probe.token_ids}, and {probe.top_ids[0]} is right"
                )
    return largest
