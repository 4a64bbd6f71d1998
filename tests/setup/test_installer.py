"""The installer looks before it downloads, starts over after an interruption, and make skips what is done."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.locks import REPOSITORY, REQUIREMENTS, installer

CUDA_DEPENDENCY = 'nvidia-cublas==1.0 ; platform_system == "Linux" or platform_system == "Darwin"'


def wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    """A wheel with nothing in it but what it asks for."""
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {each}" for each in requires]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip looks at."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("EVERLEARN_TORCH", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the build tools, made once."""
    path = tmp_path_factory.mktemp("made") / "venv"
    installer().create_environment(path, anew=False)
    installer().pip(path, "install", "--quiet", "--require-hashes", "-r", REQUIREMENTS / "build.lock")
    return path


@pytest.fixture
def venv(prepared: Path) -> Iterator[Path]:
    """An environment in which an install has begun."""
    (prepared / ".unfinished").touch()
    yield prepared
    installer().pip(prepared, "uninstall", "--quiet", "--yes", "torch")


@pytest.mark.skipif(installer().has_gpu(), reason="a GPU host may take the CUDA build")
def test_a_cuda_build_is_refused_with_the_way_out_before_it_is_installed(
    venv: Path, index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel(index, "torch", "2.13.0", CUDA_DEPENDENCY)
    wheel(index, "nvidia-cublas", "1.0")

    with pytest.raises(SystemExit) as stopped:
        installer().install_torch(venv)

    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert "CPU index shown on PyTorch's install page" in told
    assert "EVERLEARN_TORCH" in told
    assert not list(venv.glob("lib/python*/site-packages/torch-*"))
    assert not (venv / ".unfinished").exists(), "nothing was installed, so nothing is to be started over"


def test_a_cpu_build_is_installed_without_its_dependencies(venv: Path, index: Path) -> None:
    wheel(index, "torch", "2.13.0+cpu", "sympy==1.0")
    wheel(index, "sympy", "1.0")

    installer().install_torch(venv)

    assert list(venv.glob("lib/python*/site-packages/torch-2.13.0+cpu.dist-info"))
    assert not list(venv.glob("lib/python*/site-packages/sympy*"))


def test_a_wheel_named_by_the_user_is_taken(venv: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLEARN_TORCH", str(wheel(index, "torch", "2.13.0+mine")))

    installer().install_torch(venv)

    assert list(venv.glob("lib/python*/site-packages/torch-2.13.0+mine.dist-info"))


def test_a_machine_that_builds_for_another_names_the_build_of_vllm_itself() -> None:
    """An image is built where there is no GPU."""
    done = subprocess.run(
        [sys.executable, REQUIREMENTS / "install.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "vllm-cuda" in done.stdout
    assert all((REQUIREMENTS / f"{name}.lock").is_file() for name in installer().LOCKS)


def test_an_interrupted_install_starts_over(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    installer().create_environment(venv, anew=False)
    half = next(venv.glob("lib/python*/site-packages")) / "half_unpacked.py"
    half.touch()

    installer().create_environment(venv, anew=False)
    assert half.exists()

    installer().create_environment(venv, anew=True)
    assert not half.exists()


def test_make_installs_again_only_when_a_lock_is_newer(tmp_path: Path) -> None:
    stamp = tmp_path / ".stamp-serve"
    stamp.touch()
    assert "install.py" not in would_run(tmp_path)

    os.utime(stamp, (0, 0))
    assert "install.py serve" in would_run(tmp_path)


def would_run(venv: Path) -> str:
    command = ["make", "--dry-run", "install-serve", f"VENV={venv}", f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_a_gateway_only_host_runs_the_gateway_without_any_model_library(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    install = [sys.executable, REQUIREMENTS / "install.py", "gateway", "--venv", venv]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)

    program = "import serve.gateway.app, sys; print(*sys.modules)"
    python = [venv / "bin" / "python", "-c", program]
    loaded = subprocess.run(python, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split()

    assert "fastapi" in loaded
    assert not {"torch", "onnxruntime", "numpy", "transformers"} & set(loaded)
