import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.bundles.bundle import write_bundle
from everlearn.bundles.contents import check_name, check_path
from everlearn.errors import InvalidInput


@pytest.fixture
def model(tmp_path: Path, safetensors_file: bytes) -> Path:
    """An incoming directory that could become a bundle."""
    directory = tmp_path / "incoming"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(safetensors_file)
    (directory / "config.json").write_text("{}")
    return directory


def refused(directory: Path, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        write(directory)


def write(directory: Path) -> None:
    write_bundle(directory, name="m", format="safetensors", task="generate", architecture="a", parameters=1)


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "rng_state.pth", "model.pt", "a.pkl", "x.PKL", "sub/optimizer.ckpt", "a.npy"],
)
def test_pickles_are_refused(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(pickle.dumps({}))
    refused(model, f"{re.escape(name)} may be a pickle")


@pytest.mark.parametrize("name", ["modeling_evil.py", "a.so", "x.pyc", "run.SH", "custom/ops.dll"])
def test_code_is_refused(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("import os")
    refused(model, f"{re.escape(name)} is code")


def test_a_file_of_an_unknown_kind_is_refused(model: Path) -> None:
    (model / "weights.h5").write_text("x")
    refused(model, r"weights\.h5: bundles hold no '\.h5' files, only")


@pytest.mark.parametrize("start", [pickle.dumps([1, 2]), b"PK\x03\x04torch", b"\x7fELF\0\0"])
def test_a_pickle_or_program_under_the_name_of_a_text_is_refused(model: Path, start: bytes) -> None:
    (model / "merges.txt").write_bytes(start)
    refused(model, r"merges\.txt is not text")


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "evil.Model"}},
        {"text_config": {"deep": [{"auto_map": "evil--x"}]}},
        {"_attn_implementation_internal": "someone/kernel"},
        {"trust_remote_code": True},
        {"model": {"decoder": {"session_options": {"custom_ops_library": "evil.so"}}}},
    ],
)
def test_configurations_that_make_loaders_run_code_are_refused(model: Path, config: Any) -> None:
    (model / "config.json").write_text(json.dumps(config))
    refused(model, r"config\.json sets '")


def test_a_second_key_of_the_same_name_does_not_hide_the_first(model: Path) -> None:
    (model / "config.json").write_text('{"auto_map": {"A": "b.C"}, "auto_map": null}')
    refused(model, "auto_map")


def test_a_vocabulary_may_hold_any_word(model: Path) -> None:
    (model / "vocab.json").write_text(json.dumps({"auto_map": 17, "trust_remote_code": 18, "x_internal": 0}))
    write(model)


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"decoder": {"filename": "../../etc/passwd"}}},
        {"model": {"decoder": {"filename": "/etc/passwd"}}},
        {"weight_map": {"w": "../other/model.safetensors"}},
    ],
)
def test_configurations_cannot_name_files_outside(model: Path, config: Any) -> None:
    (model / "genai_config.json").write_text(json.dumps(config))
    refused(model, r"genai_config\.json: .* outside the bundle")


def test_broken_json_is_refused_by_name(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")
    refused(model, r"tokenizer\.json is not valid JSON")
    (model / "tokenizer.json").write_text("[" * 100_000)
    refused(model, r"tokenizer\.json is not valid JSON")


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 9, b"\x10\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0\x80\x04."]
)
def test_a_safetensors_file_must_be_one(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    refused(model, r"model\.safetensors is not a whole safetensors file")


def test_links_and_devices_are_refused(model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("s3cret")
    (model / "a.txt").symlink_to(secret)
    refused(model, r"a\.txt is a symbolic link")
    (model / "a.txt").unlink()
    os.link(secret, model / "a.txt")
    refused(model, r"a\.txt is a hard link")
    (model / "a.txt").unlink()
    os.mkfifo(model / "a.txt")
    refused(model, r"a\.txt is not a plain file")
    (model / "a.txt").unlink()
    (model / "folder").symlink_to(tmp_path)
    refused(model, "folder is a symbolic link")


def test_names_that_differ_in_case_only_are_refused(model: Path) -> None:
    (model / "Config.json").write_text("{}")
    refused(model, "differ in case only")


def test_a_million_files_are_not_looked_at(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everlearn.bundles.contents.MAX_FILES", 20)
    for number in range(30):
        (model / f"{number}.txt").write_text("")
    refused(model, "more than 20 files")


@given(
    st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "a", "", "b.c", "\\", "\0"])).map("/".join)
)
def test_an_accepted_path_stays_inside(path: str) -> None:
    try:
        check_path(path)
    except InvalidInput:
        return
    root = Path("/root/bundle")
    assert os.path.normpath(root / path) == str(root / path)
    assert (root / path).is_relative_to(root) and root / path != root


@given(st.text(max_size=80))
def test_a_refused_name_comes_with_one_that_would_do(name: str) -> None:
    try:
        assert check_name(name, "a name") == name
    except InvalidInput as error:
        if hint := re.search(r"; '([^']*)' would do$", error.message):
            assert check_name(hint[1], "a name") == hint[1]
