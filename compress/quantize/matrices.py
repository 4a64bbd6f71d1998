"""Quantized matrices on disk, one file each, as onnxruntime's MatMulNBits reads them.

What was quantized is not quantized again after an interruption, and none of it is in memory but the one in work.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from compress.quantize.blocks import BLOCK, Quantized
from everlearn.bundles.durable import write_file

SUFFIX = ".matrix"


class Matrices(MutableMapping[str, Quantized]):
    """By the names of the layers. What is in ``folder`` already is found again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def __getitem__(self, name: str) -> Quantized:
        return unpacked(*self.packed(name))

    def packed(self, name: str) -> tuple[Tensor, Tensor]:
        """codes: uint8 (out, blocks, bytes) and scales: float32 (out, blocks), mapped from their file."""
        if name not in self:
            raise KeyError(name)
        with safe_open(self.file(name), "pt") as tensors:
            return tensors.get_tensor("codes"), tensors.get_tensor("scales")

    def __setitem__(self, name: str, matrix: Quantized) -> None:
        write_file(self.file(name), save({"codes": packed(matrix), "scales": matrix.scales}))

    def __delitem__(self, name: str) -> None:
        self.file(name).unlink()

    def __contains__(self, name: object) -> bool:
        return self.file(str(name)).exists()

    def __iter__(self) -> Iterator[str]:
        return (file.name.removesuffix(SUFFIX) for file in sorted(self.folder.glob(f"*{SUFFIX}")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def file(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"


def packed(matrix: Quantized) -> Tensor:
    """uint8 (out, blocks, bytes); of 4 bits the even columns in the low half of a byte."""
    codes = matrix.codes
    if matrix.bits == 4:
        codes = codes[:, 0::2] | codes[:, 1::2] << 4
    return codes.reshape(*matrix.scales.shape, -1).contiguous()


def unpacked(codes: Tensor, scales: Tensor) -> Quantized:
    """The inverse of :func:`packed`."""
    bits = codes.shape[-1] * 8 // BLOCK
    halves = codes if bits == 8 else torch.stack([codes & 15, codes >> 4], dim=-1)
    return Quantized(halves.reshape(len(codes), -1), scales, bits)
