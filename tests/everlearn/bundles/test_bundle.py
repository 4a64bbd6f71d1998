import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everlearn.bundles.bundle import MANIFEST, MAX_MANIFEST_BYTES, BundleManifest, open_bundle, parse_manifest
from everlearn.bundles.verification import remember_verified
from everlearn.errors import Corrupt, EverlearnError, InvalidInput, NotFound, Unsupported


def test_a_written_bundle_is_opened_as_it_was_written(tmp_path: Path, fill_bundle: Any) -> None:
    written = fill_bundle(tmp_path / "b", recipe={"bits": 4, "path": Path("x")}, metrics={"perplexity": 12.5})
    opened = open_bundle(tmp_path / "b")
    assert opened.manifest == written
    assert opened.path == tmp_path / "b"
    assert opened.manifest.recipe == {"bits": 4, "path": "x"}
    assert set(written.files) == {"config.json", "model.safetensors", "1_Pooling/config.json"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_changed_byte_anywhere_is_refused_by_the_name_of_the_file(
    bundle: Path, data: st.DataObject
) -> None:
    files = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    name = data.draw(st.sampled_from(files))
    content = (bundle / name).read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[at] ^= data.draw(st.integers(1, 255))
    (bundle / name).write_bytes(flipped)
    try:
        if name == MANIFEST and _same_json(content, bytes(flipped)):
            open_bundle(bundle)  # white space that says the same
        else:
            with pytest.raises((Corrupt, Unsupported), match=name):
                open_bundle(bundle)
    finally:
        (bundle / name).write_bytes(content)


def _same_json(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_a_missing_and_an_added_file_are_refused_by_name(bundle: Path) -> None:
    (bundle / "extra.json").write_text("{}")
    with pytest.raises(Corrupt, match=r"extra\.json does not belong"):
        open_bundle(bundle)
    (bundle / "extra.json").unlink()
    (bundle / "config.json").unlink()
    with pytest.raises(Corrupt, match=r"config\.json is missing"):
        open_bundle(bundle)


def test_a_directory_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"has no bundle\.json"):
        open_bundle(tmp_path)
    with pytest.raises(NotFound):
        open_bundle(tmp_path / "nowhere")


def test_the_manifest_is_written_last(tmp_path: Path, fill_bundle: Any) -> None:
    with pytest.raises(InvalidInput):
        fill_bundle(tmp_path / "b", task="sing")
    assert not (tmp_path / "b" / MANIFEST).exists()


def test_writing_again_replaces_the_manifest(tmp_path: Path, fill_bundle: Any) -> None:
    fill_bundle(tmp_path / "b")
    again = fill_bundle(tmp_path / "b", architecture="qwen")
    assert open_bundle(tmp_path / "b").manifest == again
    assert MANIFEST not in again.files


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": "Tiny Model"}, "'tiny-model' would do"),
        ({"metrics": {"loss": float("nan")}}, r"metrics\.loss is nan"),
        ({"recipe": {"a": {"b": {1, 2}}}}, r"recipe\.a\.b is"),
        ({"parameters": -1}, "parameters"),
        ({"parent": "abc"}, "parent"),
        ({"format": "pickle"}, "format"),
    ],
)
def test_a_wrong_field_is_refused_by_name(
    tmp_path: Path, fill_bundle: Any, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidInput, match=named):
        fill_bundle(tmp_path / "b", **fields)


def test_a_recipe_is_limited_in_depth_and_size(tmp_path: Path, fill_bundle: Any) -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(InvalidInput, match="deeper than 32"):
        fill_bundle(tmp_path / "b", recipe=deep)
    with pytest.raises(InvalidInput, match="at most 4194304"):
        fill_bundle(tmp_path / "b", recipe={"text": "x" * MAX_MANIFEST_BYTES})


def test_a_huge_manifest_is_not_read(bundle: Path) -> None:
    with (bundle / MANIFEST).open("ab") as stream:
        stream.truncate(10 * 1024**3)
    with pytest.raises(Corrupt, match=r"bundle\.json is larger"):
        open_bundle(bundle)


def test_a_newer_schema_asks_for_an_upgrade(bundle: Path) -> None:
    fields = json.loads((bundle / MANIFEST).read_bytes())
    (bundle / MANIFEST).write_text(json.dumps(fields | {"schema_version": 2}))
    with pytest.raises(Unsupported, match="upgrade"):
        open_bundle(bundle)


def test_a_manifest_cannot_name_a_file_outside_the_bundle(bundle: Path) -> None:
    fields = json.loads((bundle / MANIFEST).read_bytes())
    fields["files"]["../secret"] = fields["files"]["config.json"]
    (bundle / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(Corrupt, match=r"\.\./secret"):
        open_bundle(bundle)


def test_a_verified_bundle_is_read_again_only_after_a_change(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_bundle(bundle).manifest
    remember_verified(bundle, manifest.digest)
    with monkeypatch.context() as patch:
        patch.setattr(
            "everlearn.bundles.bundle.verify_bundle", lambda *_: pytest.fail("the bytes were read again")
        )
        assert open_bundle(bundle).manifest == manifest
    weights = bundle / "model.safetensors"
    before = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # the time of modification can be forged
    with pytest.raises(Corrupt, match=r"model\.safetensors"):
        open_bundle(bundle)


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_manifest_or_an_error(content: bytes) -> None:
    with pytest.raises(EverlearnError):
        parse_manifest(content, "bundle.json")


@given(
    st.dictionaries(
        st.sampled_from(sorted(BundleManifest.model_fields)), st.integers() | st.text() | st.none()
    )
)
def test_any_object_is_a_manifest_or_an_error(fields: dict[str, object]) -> None:
    with pytest.raises(EverlearnError):
        parse_manifest(json.dumps(fields).encode(), "bundle.json")


def test_json_nested_without_end_is_an_error() -> None:
    with pytest.raises(Corrupt):
        parse_manifest(b"[" * 100_000, "bundle.json")
