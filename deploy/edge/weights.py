"""A graph's tensors in files that a browser can keep: of at most 32 MiB each, no tensor in two of them.

Mobile Safari refuses to cache more than some hundred megabytes in one piece, and a download that is cut off goes on with
the part that it was at. A tensor larger than a part has a file of its own. Tensors of up to 1 KiB stay in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onnx import ModelProto, StringStringEntryProto, TensorProto, external_data_helper, numpy_helper

from deploy.edge.manifest import TensorSpan
from everlearn.errors import Corrupt
from everlearn.progress import Progress

PART_BYTES = 32 * 1024**2
INLINE_BYTES = 1024
ALIGNMENT = 16
"""Of a tensor in its file, in bytes: the widest that a runtime reads at once from memory that the file is mapped to."""
COPIED_BYTES = 4 * 1024**2


@dataclass(frozen=True)
class Content:
    """A tensor's bytes: how many, and how to get them, piece by piece."""

    bytes: int
    chunks: Callable[[], Iterator[bytes]]


@dataclass
class Placed:
    """A file of weights, and what lies where in it."""

    name: str
    spans: list[TensorSpan] = field(default_factory=list[TensorSpan])

    @property
    def size_bytes(self) -> int:
        return self.spans[-1].offset + self.spans[-1].bytes if self.spans else 0


def contents_of(model: ModelProto, bundle: Path) -> dict[str, Content]:
    """The tensors of ``model`` that do not stay in the graph, by name; none of those in other files is read."""
    found: dict[str, Content] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            at = external_data_helper.ExternalDataInfo(tensor)
            found[tensor.name] = from_file(bundle / at.location, at.offset or 0, at.length)
        elif len(raw := tensor.raw_data or numpy_helper.to_array(tensor).tobytes()) > INLINE_BYTES:
            found[tensor.name] = from_memory(raw)
    return found


def from_file(file: Path, offset: int, length: int) -> Content:
    def chunks() -> Iterator[bytes]:
        with file.open("rb") as stream:
            stream.seek(offset)
            left = length
            while left:
                if not (chunk := stream.read(min(left, COPIED_BYTES))):
                    raise Corrupt(f"{file} ends within a tensor that begins at {offset}")
                left -= len(chunk)
                yield chunk

    return Content(length, chunks)


def from_memory(raw: bytes) -> Content:
    return Content(len(raw), lambda: iter([raw]))


def place(models: Iterable[ModelProto], contents: Mapping[str, Content]) -> list[Placed]:
    """Decides where each of ``contents`` is going to be, in the graphs' order, and lets ``models`` refer to it there."""
    parts: list[Placed] = []
    placed: dict[str, tuple[str, TensorSpan]] = {}
    for tensor in (one for model in models for one in model.graph.initializer):
        if tensor.name not in contents:
            continue
        if tensor.name in placed:  # two graphs read it
            refer(tensor, *placed[tensor.name])
            continue
        size = contents[tensor.name].bytes
        start = -(-parts[-1].size_bytes // ALIGNMENT) * ALIGNMENT if parts else 0
        if not parts or start + size > PART_BYTES:
            parts.append(Placed(f"weights-{len(parts):03d}.bin"))
            start = 0
        parts[-1].spans.append(TensorSpan(name=tensor.name, offset=start, bytes=size))
        placed[tensor.name] = parts[-1].name, parts[-1].spans[-1]
        refer(tensor, *placed[tensor.name])
    return parts


def refer_to(model: ModelProto, parts: list[Placed]) -> None:
    """Lets another graph of the same tensors refer to them where they are placed."""
    at = {span.name: (part.name, span) for part in parts for span in part.spans}
    for tensor in model.graph.initializer:
        if tensor.name in at:
            refer(tensor, *at[tensor.name])


def refer(tensor: TensorProto, file: str, span: TensorSpan) -> None:
    """The tensor's bytes are those of ``span`` in ``file`` from here on."""
    described = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    facts = {"location": file, "offset": span.offset, "length": span.bytes}
    described.external_data.extend(StringStringEntryProto(key=k, value=str(v)) for k, v in facts.items())
    described.data_location = TensorProto.EXTERNAL
    tensor.CopyFrom(described)


def write_weights(
    parts: list[Placed], contents: Mapping[str, Content], directory: Path, progress: Progress
) -> None:
    """Writes the files that :func:`place` decided on; a few megabytes are in memory. Raises Corrupt for a short tensor."""
    total, done = sum(part.size_bytes for part in parts), 0
    for part in parts:
        with (directory / part.name).open("wb") as target:
            for span in part.spans:
                target.write(bytes(span.offset - target.tell()))
                for chunk in contents[span.name].chunks():
                    target.write(chunk)
                    done += len(chunk)
                    progress("writing the weights", done / total)
