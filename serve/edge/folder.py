"""An edge folder as the server reads it, and the check that this machine computes it rightly.

``deploy.edge.manifest`` specifies edge.json; its files are verified before the server starts.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from everlearn.bundles.contents import read_json_object
from everlearn.errors import Corrupt, Unsupported
from serve.engines.onnx.encoders.embed import EmbedBackend
from serve.engines.onnx.encoders.heads import OUTPUTS, HeadBackend
from serve.engines.onnx.encoders.model import Encoded
from serve.engines.onnx.generate import GenerateBackend
from serve.engines.onnx.http import Backend
from serve.engines.onnx.seq2seq.backend import EncoderDecoderBackend
from serve.engines.onnx.seq2seq.model import EncoderDecoder

MANIFEST = "edge.json"
TASKS = ("generate", "embed", "text2text", *OUTPUTS)
RUNTIMES = ("onnxruntime", "onnxruntime-genai")


class Runtime(BaseModel):
    name: str


class Graph(BaseModel):
    context: int = Field(gt=0)


class Probe(BaseModel):
    """The largest logits after ``token_ids``, the first numbers of their embedding, or the first logits of the model's head;
    of an encoder-decoder, the largest after ``answer_ids``."""

    token_ids: list[int] = Field(min_length=1)
    type_ids: list[int] = []
    answer_ids: list[int] = []
    top_ids: list[int] = []
    top_logits: list[float] = []
    embedding: list[float] = []
    logits: list[float] = []

    @model_validator(mode="after")
    def _as_many(self) -> Probe:
        if self.type_ids and len(self.type_ids) != len(self.token_ids):
            raise ValueError(f"{len(self.type_ids)} type_ids of {len(self.token_ids)} token_ids")
        return self


class EdgeFolder(BaseModel):
    """The fields of edge.json that serving needs."""

    model: str
    version: int
    task: str
    target: str
    form: str
    runtime: Runtime
    graph: Graph
    probes: list[Probe] = Field(min_length=1)
    bound: float = Field(gt=0)
    memory_bytes: int


def read_edge_folder(folder: Path) -> EdgeFolder:
    """Raises Corrupt where edge.json is not one, Unsupported for a folder that another runtime is to serve."""
    try:
        said = EdgeFolder.model_validate(read_json_object(folder / MANIFEST))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in fault["loc"])
        raise Corrupt(f"{folder / MANIFEST}: {field}: {fault['msg']}", param=MANIFEST) from None
    if said.runtime.name not in RUNTIMES:
        raise Unsupported(
            f"{folder} was made for {said.target}, whose runtime is {said.runtime.name}: make one with "
            "everlearn deploy edge --target linux-x64, or linux-arm64"
        )
    if said.task not in TASKS:
        raise Unsupported(f"{folder} has a model for {said.task}; served are {', '.join(TASKS)}")
    return said


async def check_probes(folder: Path, said: EdgeFolder, backend: Backend) -> float:
    """The largest absolute difference from the folder's probes; to be called before anyone asks the model anything.

    Raises Corrupt where it is above the folder's bound: the CPU or the runtime computes the model otherwise.
    """
    worst = 0.0
    for probe in said.probes:
        worst = max(worst, await apart(probe, backend, said.bound))
    if not worst <= said.bound:  # NaN is not
        raise Corrupt(
            f"{folder}: this machine computes other numbers than the folder's probes: they differ by {worst:.4g}, "
            f"and at most {said.bound} is allowed. The model is not served"
        )
    return worst


async def apart(probe: Probe, backend: Backend, bound: float) -> float:
    """The largest absolute difference of what ``backend`` computes from ``probe``."""
    text = Encoded(probe.token_ids, probe.type_ids or [0] * len(probe.token_ids))
    if isinstance(backend, EmbedBackend):
        ((vector,),) = await backend.encoder.compute([text])
        return difference(vector[: len(probe.embedding)], probe.embedding)
    if isinstance(backend, HeadBackend):
        (rows,) = await backend.encoder.compute([text])
        first = len(probe.logits) // len(rows)
        return difference(np.concatenate([one.reshape(-1)[:first] for one in rows]), probe.logits)
    if isinstance(backend, EncoderDecoderBackend):
        logits = await asyncio.to_thread(answer_logits, backend.graphs, probe)
        return logits_difference(logits, probe, bound)
    assert isinstance(backend, GenerateBackend)
    logits = await asyncio.to_thread(backend.decoder.prefill, 0, np.array(probe.token_ids, np.int64), 0)
    backend.decoder.release(0)
    return logits_difference(logits, probe, bound)


def answer_logits(graphs: EncoderDecoder, probe: Probe) -> np.ndarray:
    """float32 (vocabulary,) after the probe's answer, which begins as every answer does."""
    state, logits = graphs.read([np.array(probe.token_ids, np.int64)])
    for token in probe.answer_ids[len(graphs.first) :]:
        logits = graphs.step(state, np.array([token], np.int64))
    return logits[0]


def logits_difference(logits: np.ndarray, probe: Probe, bound: float) -> float:
    """Of a probe's tokens; infinite where another token than the probe's clear first leads. logits: (vocabulary,)."""
    first, second = [*probe.top_logits, -np.inf][:2]
    if first - second > bound and int(np.argmax(logits)) != probe.top_ids[0]:
        return float("inf")
    return difference(logits[probe.top_ids], probe.top_logits)


def difference(found: np.ndarray, expected: list[float]) -> float:
    """The largest absolute one; infinite where nothing, or another number of values, is to be compared."""
    if not expected or len(found) != len(expected):
        return float("inf")
    return float(np.abs(np.asarray(found, np.float64) - expected).max())
