"""The CPU's instructions as Linux and macOS tell them, and what follows for products of 8 bits."""

from __future__ import annotations

import pytest

from everlearn.cpu_features import Instructions, instructions, make_exact, named

HASWELL = "flags\t\t: fpu sse2 ssse3 fma sse4_1 sse4_2 avx avx2 bmi2"
GENOA = f"{HASWELL} avx512f avx512bw avx512_vnni avx512_bf16"
GRAVITON = "Features\t: fp asimd crc32 asimddp sve i8mm bf16"
INTEL_MAC = (
    "machdep.cpu.features: SSE4.2 AVX1.0\nmachdep.cpu.leaf7_features: BMI1 AVX2\nhw.optional.avx512f: 0"
)
M2 = "hw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 1\nhw.optional.arm.FEAT_SME: 0"


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (HASWELL, ("SSE4.2", "AVX2")),
        (GENOA, ("SSE4.2", "AVX2", "AVX-512", "VNNI", "BF16")),
        (f"{GENOA} sme sev", ("SSE4.2", "AVX2", "AVX-512", "VNNI", "BF16")),
        (HASWELL.replace("avx2", "avx2 avx_vnni"), ("SSE4.2", "AVX2", "VNNI")),
        (GRAVITON, ("NEON", "dot product", "i8mm", "BF16", "SVE")),
        (INTEL_MAC, ("SSE4.2", "AVX2")),
        (M2, ("NEON", "dot product", "i8mm")),
        ("", ()),
    ],
)
def test_the_systems_list_of_instructions_is_parsed(said: str, names: tuple[str, ...]) -> None:
    assert named(said) == names


@pytest.mark.parametrize(
    ("machine", "said", "saturates", "words"),
    [
        ("x86_64", HASWELL, True, "three instructions"),
        ("x86_64", GENOA, False, "one instruction each, so INT8 and INT4 gain all they can; training"),
        ("x86_64", "flags : sse4_2", True, "computed in float32, right and slow"),
        ("AMD64", "", True, "computed in float32"),
        ("aarch64", GRAVITON, False, "one instruction"),
        ("arm64", M2, False, "one instruction"),
        ("aarch64", "Features : fp asimd", False, "computed in float32"),
    ],
)
def test_the_meaning_of_instructions_is_told(machine: str, said: str, saturates: bool, words: str) -> None:
    found = Instructions(machine, named(said))
    assert found.may_saturate == saturates and words in found.meaning


@pytest.mark.parametrize("saturates", [True, False])
def test_onnxruntime_is_told_where_products_could_saturate(
    saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(
        "everlearn.cpu_features.instructions",
        lambda: Instructions("x86_64", named(HASWELL if saturates else GENOA)),
    )
    options = onnxruntime.SessionOptions()
    make_exact(options)
    key = "session.x64quantprecision"
    if saturates:
        assert options.get_session_config_entry(key) == "1"
    else:
        with pytest.raises(RuntimeError, match="does not have"):
            options.get_session_config_entry(key)


def test_this_machine_has_instructions() -> None:
    assert instructions().names
