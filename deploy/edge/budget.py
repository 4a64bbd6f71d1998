"""Budgets as people write them, and what a folder takes, part by part, before any of it is written.

Bytes to download are exact. Memory is predicted from the sizes of tensors; the factors were fitted to SmolLM2-135M and
MiniLM (docs/edge.md has them beside the measurements), and what can run here is measured after building.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.edge.manifest import DecoderGraph, EncoderDecoderGraph, Graph
from deploy.edge.plan import Plan
from everlearn.errors import EverlearnError, InvalidInput

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
LIMIT = re.compile(rf"(download|memory)\s*<=\s*(\d{{1,9}}(?:\.\d{{1,6}})?)\s*({'|'.join(UNITS)})")
EXAMPLE = "download<=100MB,memory<=400MB"

FLOAT_BYTES = 4
KEPT_FLOAT = 1.75
"""float32 weights that WebAssembly holds at once, over their size: as it loads, it packs each for its kernels."""
KEPT_INT8 = 2.0
"""The same of 8-bit weights."""
MULTIPLIED = ("FusedMatMul", "MatMulNBits", "MatMulInteger")


class OverBudget(EverlearnError):
    """More than the budget allows; nothing was written."""

    code = "over_budget"


@dataclass(frozen=True)
class Budget:
    """Limits in bytes; None where there is none."""

    download: int | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Prediction:
    """Bytes by part, the largest first where a person reads them. ``loading`` and ``answering`` are of one process."""

    download: Mapping[str, int]
    loading: Mapping[str, int]
    answering: Mapping[str, int]

    @property
    def download_bytes(self) -> int:
        return sum(self.download.values())

    @property
    def memory(self) -> Mapping[str, int]:
        return max(self.loading, self.answering, key=lambda parts: sum(parts.values()))

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())

    def with_measured(self, peak_bytes: int) -> int:
        """Memory by a measured peak, of a process that loaded and answered a little: longer answers need their cache."""
        growth = sum(self.answering.values()) - sum(self.loading.values())
        return peak_bytes + max(0, growth)


def parse_budget(text: str) -> Budget:
    """Raises InvalidInput saying what a budget looks like."""
    limits: dict[str, int] = {}
    for one in text.split(","):
        found = LIMIT.fullmatch(one.strip())
        if not found or found[1] in limits:
            twice = f" (a second limit of {found[1]})" if found else ""
            raise InvalidInput(
                f"--budget: {one.strip()[:80]!r}{twice} is no limit; a budget looks like {EXAMPLE!r}, each limit at most "
                f"once, with {', '.join(UNITS)}",
                param="budget",
            )
        limits[found[1]] = int(float(found[2]) * UNITS[found[3]])
    return Budget(**limits)


def predict(plan: Plan) -> Prediction:
    """What the folder of ``plan`` is going to take."""
    weights = sum(part.size_bytes for part in plan.parts)
    sizes = plan.sizes
    small = {"tokenizer": sizes.get("tokenizer.json", 0)}
    small["graph and settings"] = sum(sizes.values()) - weights - small["tokenizer"]
    fixed = {"runtime": plan.of.runtime.process_bytes, "weights as downloaded": weights}
    cache = {"keys and values": cache_bytes(plan.graph)}
    multiplied = multiplied_bytes(plan)
    if plan.target == "web":
        factor, kept = (
            (KEPT_FLOAT, "weights in float32") if plan.form == "int4-qdq" else (KEPT_INT8, "packed weights")
        )
        held = multiplied if plan.form == "int4-qdq" else weights
        loading = fixed | {f"{kept}, while loading": math.ceil(factor * held)}
        answering = (
            fixed | {kept: held} | {name: 2 * size for name, size in cache.items()}
        )  # past and present
    else:
        loading = fixed | {"packed weights": multiplied}
        answering = loading | cache
    return Prediction({"weights": weights, **small}, loading, answering)


def multiplied_bytes(plan: Plan) -> int:
    """Bytes of the matrices that products read, as the kernels hold them."""
    found = 0
    for graph in (model.graph for model in plan.models.values()):
        tensors = {one.name: one for one in graph.initializer}
        made_of = {node.output[0]: node.input[0] for node in graph.node if node.output and node.input}
        names = {node.input[1] for node in graph.node if node.op_type in MULTIPLIED and len(node.input) > 1}
        for name in names:
            source = made_of.get(name, name)  # what a DequantizeLinear or a Transpose makes of it
            if source not in tensors:
                continue
            if plan.form == "int4-qdq":
                found += FLOAT_BYTES * math.prod(tensors[source].dims)
            elif source in plan.contents:  # what is inline is of no weight
                found += plan.contents[source].bytes
    return found


def cache_bytes(graph: Graph) -> int:
    """Of keys and values when the context is full; of an encoder-decoder those of a source and of an answer."""
    if isinstance(graph, EncoderDecoderGraph):
        return 2 * 2 * graph.layers * graph.heads * graph.head_size * graph.context * FLOAT_BYTES
    if not isinstance(graph, DecoderGraph):
        return 0
    element = {"float32": 4, "float16": 2}.get(graph.cache, 1)
    return 2 * graph.layers * graph.kv_heads * graph.head_size * graph.context * element


def refuse_over(
    budget: Budget, download_bytes: int, memory_bytes: int, parts: Prediction, what: str, hint: str
) -> None:
    """Raises OverBudget with the numbers, the parts of what is too large, and ``hint``."""
    faults = [
        f"{name} {megabytes(size)}, {megabytes(size - limit)} over {megabytes(limit)}: {listed(of)}"
        for name, size, limit, of in (
            ("download", download_bytes, budget.download, parts.download),
            ("memory", memory_bytes, budget.memory, parts.memory),
        )
        if limit is not None and size > limit
    ]
    if faults:
        said = "".join(f"\n- {one}" for one in faults)
        raise OverBudget(f"{what} is over the budget:{said}\n{hint}. Nothing was written", param="budget")


def fits(budget: Budget, parts: Prediction) -> bool:
    return (budget.download is None or parts.download_bytes <= budget.download) and (
        budget.memory is None or parts.memory_bytes <= budget.memory
    )


def listed(parts: Mapping[str, int]) -> str:
    """The parts, the largest first."""
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {megabytes(size)}" for name, size in ordered if size)


def megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
