"""edge.json: what a folder for a device holds, and which logits its runtime must reproduce.

It is canonical JSON (sorted keys, no times), so that the same files give the same bytes, and is written last: a folder
without it is nothing.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from deploy.edge.targets import FormName
from everlearn.bundles.bundle import Digest, Task
from everlearn.bundles.contents import check_path
from everlearn.bundles.durable import write_file
from everlearn.errors import Corrupt, InvalidInput, NotFound, Unsupported

MANIFEST = "edge.json"
FORMAT = "everlearn-edge/1"
WEBGPU_GRAPH = "model-webgpu.onnx"
"""A web folder's second graph, of the same weights: MatMulNBits, which WebGPU has kernels for and WebAssembly has not."""
MAX_MANIFEST_BYTES = 4 * 1024**2

Count = Annotated[int, Field(ge=0, lt=2**53)]
"""2**53: a page reads it as a double."""


class Part(BaseModel):
    """A piece of edge.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class File(Part):
    path: str
    bytes: Count
    sha256: Digest

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        return check_path(path)


class TensorSpan(Part):
    """Where a tensor lies in its file; what is between two of them is zeros."""

    name: str
    offset: Count
    bytes: Count


class RuntimeUsed(Part):
    name: str
    version: str


class DecoderGraph(Part):
    """``context``: tokens of prompt and answer that the device keeps at most. ``cache``: type of keys and values."""

    layers: Count
    kv_heads: Count
    head_size: Count
    vocabulary: Count
    context: Count
    hidden: Count
    cache: str


class EncoderGraph(Part):
    """``context``: tokens that a text is cut to. ``hidden``: numbers of an embedding."""

    context: Count
    hidden: Count


class HeadGraph(Part):
    """An encoder with a head. ``context``: tokens that a text, or a pair of texts, may have. ``labels``: in the order of the
    logits. ``multi_label``: each of them is a decision of its own."""

    context: Count
    labels: list[str]
    multi_label: bool = False


class EncoderDecoderGraph(Part):
    """``context``: tokens of a source, and of an answer. ``first``: what every answer begins with, and nobody sees;
    ``never``: tokens that no answer has. Keys and values are float32."""

    layers: Count
    heads: Count
    head_size: Count
    vocabulary: Count
    context: Count
    first: Annotated[list[Count], Field(min_length=1)]
    never: list[Count] = []


Graph = DecoderGraph | EncoderGraph | HeadGraph | EncoderDecoderGraph


class Generation(Part):
    """What ends an answer, and how the model's authors sample."""

    eos_token_ids: list[Count]
    bos_token_id: Count | None = None
    temperature: float = 0.0
    top_k: Count = 50
    top_p: float = 1.0


class DecoderProbe(Part):
    """The largest logits after a prompt's last token."""

    token_ids: Annotated[list[Count], Field(min_length=1)]
    top_ids: list[Count]
    top_logits: list[float]


class EncoderProbe(Part):
    """The first numbers of a text's embedding."""

    token_ids: Annotated[list[Count], Field(min_length=1)]
    embedding: list[float]


class HeadProbe(Part):
    """The first logits of a text or a pair, of each of the graph's outputs in turn. ``type_ids``: 1 in a second text."""

    token_ids: Annotated[list[Count], Field(min_length=1)]
    type_ids: list[Count]
    logits: list[float]


class AnswerProbe(DecoderProbe):
    """The largest logits after ``answer_ids``, which follow the source ``token_ids``."""

    answer_ids: Annotated[list[Count], Field(min_length=1)]


Probe = DecoderProbe | EncoderProbe | HeadProbe | AnswerProbe
Probes = list[DecoderProbe] | list[EncoderProbe] | list[HeadProbe] | list[AnswerProbe]


class Measured(Part):
    tokens_per_s: float
    peak_bytes: Count
    on: str


class EdgeManifest(Part):
    """edge.json. ``bound``: the largest absolute difference from ``probes`` that a runtime may show."""

    format: Literal["everlearn-edge/1"] = FORMAT
    model: str
    version: Count
    digest: Digest
    task: Task
    target: str
    form: FormName
    runtime: RuntimeUsed
    files: list[File]
    tensors: dict[str, list[TensorSpan]]
    graph: Graph
    generation: Generation | None = None
    probes: Annotated[Probes, Field(min_length=1)]
    bound: float = Field(gt=0)
    download_bytes: Count
    memory_bytes: Count
    memory_is: Literal["measured", "estimated"]
    measured: Measured | None = None


def write_manifest(directory: Path, manifest: EdgeManifest) -> None:
    """Writes edge.json, durably."""
    fields = manifest.model_dump(mode="json", exclude_none=True)
    content = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    write_file(directory / MANIFEST, content.encode())


def read_manifest(directory: Path) -> EdgeManifest:
    """Raises NotFound where there is no edge.json, Corrupt where it is none, Unsupported for another format."""
    path = directory / MANIFEST
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{directory} holds no edge folder: it has no {MANIFEST}") from None
    if len(content) > MAX_MANIFEST_BYTES:
        raise Corrupt(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes", param=MANIFEST)
    try:
        fields = json.loads(content)
        said = fields.get("format")
    except (ValueError, RecursionError, AttributeError) as error:
        raise Corrupt(f"{path} is not a JSON object: {error}", param=MANIFEST) from None
    if said != FORMAT:
        raise Unsupported(f"{path} has format {str(said)[:80]!r}; this everlearn reads {FORMAT!r}")
    try:
        return EdgeManifest.model_validate(fields)
    except (ValidationError, InvalidInput) as error:
        fault = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        told = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" if fault else str(error)
        raise Corrupt(f"{path}: {told}", param=MANIFEST) from None


def verify_files(directory: Path, manifest: EdgeManifest) -> None:
    """Reads every byte. Raises Corrupt naming a file that is missing, not listed, or not what was written.

    A folder for web may hold more: the page around the model.
    """
    listed = {one.path: one for one in manifest.files}
    present = {one.relative_to(directory).as_posix() for one in directory.rglob("*") if not one.is_dir()}
    for path in sorted(listed.keys() | present - {MANIFEST}):
        if path not in present:
            raise Corrupt(f"{directory / path} is missing", param=path)
        if path not in listed:
            if manifest.target == "web":
                continue
            raise Corrupt(f"{directory / path} is not listed in {MANIFEST}", param=path)
        if describe(directory, path) != listed[path]:
            raise Corrupt(
                f"{directory / path} is not the file that was written: its bytes changed", param=path
            )


def describe(directory: Path, path: str) -> File:
    """Size and sha256 of a file of the folder."""
    with (directory / path).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return File(path=path, bytes=stream.tell(), sha256=digest)
