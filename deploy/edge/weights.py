"""A graph's tensors in files that a browser can keep: of at most 32 MiB each, no tensor in two of them.

Mobile Safari refuses to cache more than some hundred megabytes in one piece, and a download that is cut off goes on with
the part that it was at. A tensor larger than a part has a file of its own. Tensors of up to 1 KiB stay in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from onnx import ModelProto, StringStringEntryProto, TensorProto, external_data_helper

from deploy.edge.manifest import TensorSpan
from everlearn.errors import Corrupt
from everlearn.progress import Progress

PART_BYTES = 32 * 1024**2
ALIGNMENT = 16
"""Of a tensor in its file, in bytes: the widest that a runtime reads at once from memory that the file is mapped to."""
COPIED_BYTES = 4 * 1024**2


@dataclass
class Placed:
    """A file of weights, and what lies where in it."""

    name: str
    spans: list[TensorSpan] = field(default_factory=list[TensorSpan])

    @property
    def size_bytes(self) -> int:
        return self.spans[-1].offset + self.spans[-1].bytes if self.spans else 0


def place(model: ModelProto) -> list[Placed]:
    """Where each external tensor of ``model`` is going to be, in the graph's order."""
    parts: list[Placed] = []
    for tensor in external(model):
        size = source(tensor).length
        start = -(-parts[-1].size_bytes // ALIGNMENT) * ALIGNMENT if parts else 0
        if not parts or start + size > PART_BYTES:
            parts.append(Placed(f"weights-{len(parts):03d}.bin"))
            start = 0
        parts[-1].spans.append(TensorSpan(name=tensor.name, offset=start, bytes=size))
    return parts


def move_weights(model: ModelProto, bundle: Path, directory: Path, progress: Progress) -> list[Placed]:
    """Copies the tensors of ``bundle`` to ``directory``, and lets ``model`` refer to them there.

    One buffer's worth is in memory. Raises Corrupt where a tensor is not all there.
    """
    parts = place(model)
    tensors = {one.name: one for one in external(model)}
    total, done = sum(part.size_bytes for part in parts), 0
    for part in parts:
        with (directory / part.name).open("wb") as target:
            for span in part.spans:
                tensor = tensors[span.name]
                target.write(bytes(span.offset - target.tell()))
                for chunk in read(tensor, bundle):
                    target.write(chunk)
                    done += len(chunk)
                    progress("writing the weights", done / total)
                refer(tensor, part.name, span)
    return parts


def refer(tensor: TensorProto, file: str, span: TensorSpan) -> None:
    """The tensor's bytes are those of ``span`` in ``file`` from here on."""
    facts = {"location": file, "offset": span.offset, "length": span.bytes}
    del tensor.external_data[:]
    tensor.external_data.extend(StringStringEntryProto(key=k, value=str(v)) for k, v in facts.items())


def external(model: ModelProto) -> list[TensorProto]:
    """The tensors that lie outside of the graph, in its order."""
    return [one for one in model.graph.initializer if one.data_location == TensorProto.EXTERNAL]


def source(tensor: TensorProto) -> external_data_helper.ExternalDataInfo:
    return external_data_helper.ExternalDataInfo(tensor)


def read(tensor: TensorProto, bundle: Path) -> Iterator[bytes]:
    """The bytes of an external tensor. Raises Corrupt where the file ends before them."""
    at = source(tensor)
    with (bundle / at.location).open("rb") as stream:
        stream.seek(at.offset or 0)
        left = at.length
        while left:
            if not (chunk := stream.read(min(left, COPIED_BYTES))):
                raise Corrupt(f"{bundle / at.location} ends within the tensor {tensor.name}")
            left -= len(chunk)
            yield chunk
