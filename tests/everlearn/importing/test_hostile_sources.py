"""Whatever lies in a model that someone brings: it comes in, or one error of ours says why not. Never a traceback."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everlearn.bundles.bundle import MANIFEST, read_manifest, write_bundle
from everlearn.bundles.contents import list_files, refuse_unsafe
from everlearn.bundles.inspector import inspect
from everlearn.bundles.safetensors_header import read_header
from everlearn.errors import EverlearnError, InvalidInput
from everlearn.importing.gguf_validation import FIXED, check_gguf
from everlearn.importing.sources import fill_from_directory, import_model
from everlearn.progress import silent
from everlearn.registry.registry import Registry
from everlearn.settings import Settings

many = settings(
    max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 7, -1, 2**31, 2**63, 2**80, 1e308, float("nan"), "", "x", "../x", "a\0b", "\ud800", "x" * 300, [], {},
     [[]], [7], {"x": 1}, ["LlamaForCausalLM", 7], {"a": {"b": None}}]
)  # fmt: skip


@st.composite
def spoiled(draw: st.DrawFn, value: Any, depth: int = 0) -> Any:
    """``value`` with one thing in it replaced, added or left out."""
    if isinstance(value, dict) and value and (depth == 0 or draw(st.booleans())):
        key = draw(st.sampled_from(sorted(value)) | st.sampled_from(["auto_map", "filename", "new"]))
        if key in value and draw(st.integers(0, 4)) == 0:
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: draw(spoiled(value.get(key), depth + 1))}
    if isinstance(value, list) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(spoiled(value[at], depth + 1)), *value[at + 1 :]]
    return draw(ODD)


def is_ours(act: Callable[[], object]) -> str | None:
    """What the error said, where there was one."""
    try:
        act()
    except EverlearnError as error:
        assert error.message and len(error.message) < 2000
        return error.message
    return None


# Configurations --------------------------------------------------------------------------------------------------

FILES = [
    "config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "generation_config.json",
    "model.safetensors.index.json",
]
INDEX = {"metadata": {"total_size": 1}, "weight_map": {"model.embed_tokens.weight": "model.safetensors"}}


@pytest.mark.parametrize("name", FILES)
@many
@given(data=st.data())
def test_a_models_json_files_may_say_anything(
    llama: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    shutil.rmtree(tmp_path / "m", ignore_errors=True)
    model, staging = Path(shutil.copytree(llama, tmp_path / "m" / "model")), tmp_path / "m" / "staging"
    staging.mkdir()
    valid = INDEX if name == FILES[-1] else json.loads((llama / name).read_text())
    said = data.draw(spoiled(valid) | ODD)
    (model / name).write_bytes(json.dumps(said).encode("utf-8", "surrogatepass"))

    def bring_in() -> None:
        found = fill_from_directory(model, staging, silent)
        write_bundle(
            staging, name="x", format=found.format, task=found.task, architecture=found.architecture,
            parameters=found.parameters, recipe={"import": found.recipe},
        )  # fmt: skip
        inspect(
            {"directory": str(staging), "files": sorted({"tokenizer.json", "tokenizer_config.json"})}, silent
        )

    is_ours(bring_in)


@many
@given(
    said=spoiled(
        {"model": {"type": "llama", "decoder": {"filename": "model.onnx", "head_size": 4}}, "search": {}}
    )
    | ODD
)
def test_a_genai_configuration_may_say_anything(tmp_path: Path, said: Any) -> None:
    shutil.rmtree(tmp_path, ignore_errors=True)
    (tmp_path / "model").mkdir(parents=True)
    (tmp_path / "staging").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"x")
    (tmp_path / "model" / "genai_config.json").write_bytes(json.dumps(said).encode("utf-8", "surrogatepass"))
    is_ours(lambda: fill_from_directory(tmp_path / "model", tmp_path / "staging", silent))


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b'{"a":' * 5000, b"\xff\xfe{", b"{" + b" " * 100, b"9" * 10_000]
)
@pytest.mark.parametrize("name", [*FILES, "genai_config.json", "special_tokens_map.json", "modules.json"])
def test_a_file_that_is_no_json_is_named(llama: Path, tmp_path: Path, name: str, content: bytes) -> None:
    model, staging = Path(shutil.copytree(llama, tmp_path / "model")), tmp_path / "staging"
    staging.mkdir()
    (model / name).write_bytes(content)

    def bring_in() -> None:
        fill_from_directory(model, staging, silent)
        refuse_unsafe(staging, list_files(staging))
        inspect({"directory": str(staging), "files": [name] if name in FILES else []}, silent)

    said = is_ours(bring_in)
    assert said and (name in said or name == "model.safetensors.index.json"), said


def test_json_of_a_million_empty_lists_is_not_parsed(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"[" + b"[]," * 9_000_000 + b"1]")
    with pytest.raises(InvalidInput, match=r"tokenizer\.json holds more than 8000000 values"):
        refuse_unsafe(tmp_path, {"tokenizer.json"})


# Weights ---------------------------------------------------------------------------------------------------------

HEADER = {
    "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "v": {"dtype": "F16", "shape": [], "data_offsets": [8, 10]},
}


def safetensors(header: Any, data_bytes: int = 10) -> bytes:
    said = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(said)) + said + bytes(data_bytes)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 30_000, b'{"a":' * 30_000, b"[]", b"7", {"w": 7}, {"w": {}}, {"w": {"dtype": "F32", "data_offsets": [0, 10]}},
        {"w": {**HEADER["w"], "shape": [2**62, 2**62]}}, {"w": {**HEADER["w"], "shape": [-2]}}, {"w": {**HEADER["w"], "shape": "2"}},
        {"w": {**HEADER["w"], "dtype": "PICKLE"}}, {"w": {**HEADER["w"], "data_offsets": [8, 0]}},
        {"w": {**HEADER["w"], "data_offsets": [True, 8]}}, {"a": HEADER["w"], "b": HEADER["w"], "v": HEADER["v"]},
    ],
)  # fmt: skip
def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path, header: Any) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors(header))
    with pytest.raises(InvalidInput, match=r"^model\.safetensors is not a whole safetensors file: "):
        read_header(tmp_path / "model.safetensors")


@many
@given(header=spoiled(HEADER) | ODD, cut=st.integers(0, 12))
def test_any_safetensors_header_is_read_or_refused(tmp_path: Path, header: Any, cut: int) -> None:
    file = tmp_path / "model.safetensors"
    content = safetensors(header)
    file.write_bytes(content[: len(content) - cut])
    is_ours(lambda: read_header(file))


# bundle.json -----------------------------------------------------------------------------------------------------


@many
@given(data=st.data())
def test_a_manifest_may_say_anything(bundle: Path, data: st.DataObject) -> None:
    valid = json.loads((bundle / MANIFEST).read_text())
    said = data.draw(spoiled(valid) | ODD)
    content = json.dumps(said).encode("utf-8", "surrogatepass")
    at = data.draw(st.integers(0, len(content)))
    copy = bundle / "copy"
    copy.mkdir(exist_ok=True)
    (copy / MANIFEST).write_bytes(
        content if data.draw(st.booleans()) else content[:at] + b"\xff" + content[at:]
    )
    is_ours(lambda: read_manifest(copy))


@pytest.mark.parametrize("key", ["recipe", "metrics", "files"])
def test_a_manifest_nested_without_end_is_refused(bundle: Path, key: str) -> None:
    said = json.loads((bundle / MANIFEST).read_text()) | {key: "DEEP"}
    for depth in (100, 900, 100_000):
        deep = '{"a":' * depth + "1" + "}" * depth
        (bundle / MANIFEST).write_text(json.dumps(said).replace('"DEEP"', deep))
        assert is_ours(lambda: read_manifest(bundle))


# GGUF ------------------------------------------------------------------------------------------------------------

TEXT, ARRAY = 8, 9


def text(value: str | bytes) -> bytes:
    content = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(content)) + content


def gguf_bytes(
    *fields: bytes, tensors: list[bytes] | None = None, counts: tuple[int, int] | None = None
) -> bytes:
    tensors = tensors or []
    said = counts or (len(tensors), len(fields))
    return b"GGUF" + struct.pack("<IQQ", 3, *said) + b"".join(fields) + b"".join(tensors) + bytes(200)


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return text("a.b") + struct.pack("<IIQ", ARRAY, kind, count) + content


def tensor(*shape: int, offset: int = 0, kind: int = 0) -> bytes:
    return text("w") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


LIES = {
    "an array of 2^60 bytes": gguf_bytes(array(0, 2**60)),
    "an array of 2^60 texts": gguf_bytes(array(TEXT, 2**60)),
    "an array of a million texts that are not there": gguf_bytes(array(TEXT, 10**6)),
    "an array within the file of too many elements": gguf_bytes(array(0, 2**23, bytes(2**23))),
    "nested arrays": gguf_bytes(array(ARRAY, 2**40, struct.pack("<IQ", ARRAY, 2**40) * 9)),
    "an array of an unknown type": gguf_bytes(array(77, 1)),
    "a text of 2^63 bytes": gguf_bytes(text("a.b") + struct.pack("<IQ", TEXT, 2**63)),
    "a name of 2^63 bytes": gguf_bytes(struct.pack("<Q", 2**63) + bytes(50)),
    "a name that is no text": gguf_bytes(text(b"\xff\xfe") + struct.pack("<IB", 0, 1)),
    "2^60 fields": gguf_bytes(counts=(0, 2**60)),
    "2^60 tensors": gguf_bytes(counts=(2**60, 0)),
    "ten fields that are not there": gguf_bytes(counts=(0, 10)),
    "a shape of 2^62 by 2^62": gguf_bytes(tensors=[tensor(2**62, 2**62)]),
    "a million dimensions": gguf_bytes(tensors=[text("w") + struct.pack("<I", 10**6) + bytes(100)]),
    "a tensor beyond the end": gguf_bytes(tensors=[tensor(2, offset=2**60)]),
    "two tensors of one name": gguf_bytes(tensors=[tensor(2), tensor(2)]),
    "an alignment of 3": gguf_bytes(text("general.alignment") + struct.pack("<II", 4, 3)),
    "an empty file": b"",
    "its first bytes alone": b"GGUF\x03\0\0\0",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_gguf_file_whose_lengths_lie_is_refused_at_once(tmp_path: Path, lie: str) -> None:
    (tmp_path / "x.gguf").write_bytes(LIES[lie])
    program = (
        "import sys, resource; resource.setrlimit(resource.RLIMIT_DATA, (2**28, 2**28)); from pathlib import Path\n"
        "from everlearn.importing.gguf_validation import check_gguf; from everlearn.errors import InvalidInput\n"
        "try: check_gguf(Path(sys.argv[1]))\n"
        "except InvalidInput as error: print(error)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "x.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.startswith("x.gguf is "), done


@many
@given(data=st.data())
def test_any_bytes_behind_a_gguf_header_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    number = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 12, 13, 255, 2**31, 2**32 - 1])
    piece = st.one_of(
        number.map(lambda n: struct.pack("<I", n)), st.integers(0, 2**64 - 1).map(lambda n: struct.pack("<Q", n)),
        st.integers(0, 9).map(lambda n: struct.pack("<Q", n)), st.binary(max_size=12), st.just(text("a.block_count")),
        st.sampled_from(sorted(FIXED)).map(lambda kind: array(kind, 3, bytes(24))), st.just(tensor(2, 2)),
    )  # fmt: skip
    pieces = data.draw(st.lists(piece, max_size=12))
    counts = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(*pieces, counts=counts))
    is_ours(lambda: check_gguf(tmp_path / "x.gguf"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("block_count", 2**31 - 1, r"damaged: llama\.block_count is 2147483647, with [0-9]+ tensors"),
        ("embedding_length", 2**31, r"token_embd\.weight has shape \(512, 64\), not \(512, 2147483648\)"),
        ("attention.head_count", 0, r"^llama\.attention\.head_count is 0; one whole number"),
        ("context_length", 2**32 - 1, None),
    ],
)
def test_numbers_that_cannot_be_end_in_one_sentence(
    tmp_path: Path,
    gguf: Path,
    key: str,
    value: int,
    said: str | None,
) -> None:
    content = gguf.read_bytes()
    name = text(f"llama.{key}") + struct.pack("<I", 4)
    assert content.count(name) == 1
    at = content.index(name) + len(name)
    (tmp_path / "x.gguf").write_bytes(content[:at] + struct.pack("<I", value) + content[at + 4 :])
    home = Settings(home=tmp_path / "home")
    if said is None:
        assert import_model(home, str(tmp_path / "x.gguf")).ref == "x@1"
        return
    with pytest.raises(EverlearnError, match=said) as caught:
        import_model(home, str(tmp_path / "x.gguf"))
    assert caught.value.exit_code in (1, 2) and "Traceback" not in caught.value.message
    assert not Registry(home).list()
