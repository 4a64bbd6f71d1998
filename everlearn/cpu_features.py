"""The instruction sets of this CPU, and what they mean for weights of 4 and 8 bits."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

CPUINFO = Path("/proc/cpuinfo")

# What Linux (/proc/cpuinfo) and macOS (sysctl, in lower case) call them.
X86 = {
    "SSE4.2": ("sse4_2", "sse4.2"),
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx512vnni", "avx_vnni"),
    "BF16": ("avx512_bf16", "amx_bf16"),
    "AMX": ("amx_int8",),
}
ARM = {
    "NEON": ("asimd", "advsimd"),
    "dot product": ("asimddp", "feat_dotprod"),
    "i8mm": ("i8mm", "feat_i8mm"),
    "BF16": ("bf16", "feat_bf16"),
    "SVE": ("sve",),
    "SME": ("sme", "feat_sme"),
}


class SessionOptions(Protocol):
    """onnxruntime's."""

    def add_session_config_entry(self, key: str, value: str, /) -> None: ...


@dataclass(frozen=True)
class Instructions:
    """``names``: those of :data:`X86` or :data:`ARM` that were found, in their order."""

    machine: str
    names: tuple[str, ...]

    @property
    def is_x86(self) -> bool:
        """Whether the CPU is one of Intel's kind."""
        return self.machine.lower() in ("x86_64", "amd64", "i686")

    @property
    def may_saturate(self) -> bool:
        """Whether onnxruntime adds products of unsigned and signed 8 bits in 16 bits, which 2 * 255 * 127 overflows."""
        return self.is_x86 and "VNNI" not in self.names

    @property
    def is_fast(self) -> bool:
        """Whether a product of 8 bits is one instruction."""
        return bool({"VNNI", "dot product"} & set(self.names))

    @property
    def meaning(self) -> str:
        """For speed and exactness, in a sentence."""
        if self.is_fast:
            said = "8-bit products take one instruction each, so INT8 and INT4 gain all they can"
        elif "AVX2" in self.names:
            said = (
                "8-bit products take three instructions each, so INT8 and INT4 gain less than with VNNI; "
                "encoders of full 8 bits (made elsewhere, or before they kept to 7) are read as unsigned, to stay right"
            )
        else:
            said = "no 8-bit products: INT8 and INT4 decoders are computed in float32, right and slow"
        if "BF16" in self.names:
            said += "; training computes in bfloat16" if self.is_x86 else "; it multiplies bfloat16"
        return said


def instructions() -> Instructions:
    """Of this machine; none are known where neither Linux nor macOS says them."""
    machine = platform.machine()
    return Instructions(machine, named(_said()))


def named(said: str) -> tuple[str, ...]:
    """The names of what the system says, words or ``name: 1`` lines."""
    lines = [line.rpartition(":") for line in said.lower().splitlines() if not line.rstrip().endswith(": 0")]
    words = {word for before, _, after in lines for word in (before.rpartition(".")[2], *after.split())}
    kinds = ARM if words & set(ARM["NEON"]) else X86  # AMD's CPUs have an "sme" of their own
    return tuple(name for name, known in kinds.items() if words & set(known))


def make_exact(options: SessionOptions) -> None:
    """Tells onnxruntime to compute 8-bit products that could saturate here as unsigned ones, which cannot.

    It changes only graphs with weights beyond 7 bits, which everlearn does not make.
    """
    if instructions().may_saturate:
        options.add_session_config_entry("session.x64quantprecision", "1")


def _said() -> str:
    """The first CPU's line of /proc/cpuinfo, or what macOS tells of its CPU."""
    if CPUINFO.is_file():
        lines = CPUINFO.read_text(errors="replace").splitlines()
        return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    asked = ["sysctl", "machdep.cpu.features", "machdep.cpu.leaf7_features", "hw.optional"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=False, timeout=10).stdout
    except OSError:
        return ""
