"""A process dies, or the disk fails, at every single write: what was acknowledged stays, nothing half is listed."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everlearn.bundles.bundle import MANIFEST, open_bundle
from everlearn.errors import EverlearnError
from everlearn.registry.registry import Registry
from everlearn.settings import Settings

CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


def in_child(work: Callable[[], None]) -> int:
    """Runs ``work`` in a forked process; returns how that ended, as waitpid says."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except EverlearnError:
            os._exit(2)
        except OSError:
            os._exit(1)
        except BaseException:  # noqa: BLE001 (a child never returns into pytest)
            os._exit(9)
    return os.waitpid(child, 0)[1]


def fail_nth_call(n: int, failure: Callable[[], None]) -> None:
    """From now on in this process, the n-th call that changes the disk is ``failure`` instead."""
    count = 0

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == n:
                failure()
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(getattr(os, name)))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def input_output_error() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("failure", [die, no_space, input_output_error])
@pytest.mark.parametrize("operation", ["add", "collect"])
def test_a_failure_at_any_write_leaves_whole_versions_only(
    tmp_path: Path, fill_bundle: Any, failure: Callable[[], None], operation: str
) -> None:
    template = tmp_path / "template"
    first = Registry(Settings(home=template))
    for salt in ("one", "two"):
        with first.staging() as staging:
            fill_bundle(staging, salt=salt)
            first.add(staging, "tiny")
    first.delete("tiny@2")
    first.database.dispose()

    for n in range(1, 200):
        home = tmp_path / f"home{n}"
        shutil.copytree(template, home)

        def work(home: Path = home, n: int = n) -> None:
            registry = Registry(Settings(home=home))
            fail_nth_call(n, failure)
            if operation == "collect":
                registry.collect()
                return
            with registry.staging() as staging:
                fill_bundle(staging, salt="three")
                registry.add(staging, "tiny")

        ended = in_child(work)
        check_whole(Registry(Settings(home=home)), acknowledged=ended == 0 and operation == "add")
        shutil.rmtree(home)
        if ended == 0 and n > 5:
            return
    pytest.fail("the work never came to its end")


def check_whole(registry: Registry, acknowledged: bool) -> None:
    versions = [version.version for version in registry.versions("tiny")]
    assert versions in ([1], [3, 1])
    assert versions == [3, 1] or not acknowledged
    for version in registry.versions("tiny"):
        registry.verify(version)
    registry.collect()
    store = registry.settings.directory("store")
    assert {path.name for path in store.iterdir() if path.is_dir()} == {
        v.digest for v in registry.versions("tiny")
    }
    assert list(registry.settings.directory("tmp").glob("stage-*")) == []
    registry.database.dispose()


def test_the_next_start_clears_the_folder_of_a_killed_process_and_no_other(settings: Settings) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from everlearn.registry.registry import Registry; from everlearn.settings import Settings\n"
        "with Registry(Settings(home=Path(sys.argv[1]))).staging() as staging:\n"
        "    (staging / 'model.safetensors').write_bytes(b'half'); print(staging, flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(settings.home)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout
        abandoned = Path(child.stdout.readline().strip())
        with Registry(settings).staging() as own:
            Registry(settings).collect()
            assert abandoned.is_dir() and own.is_dir()
            child.send_signal(signal.SIGKILL)
            child.wait()
            registry = Registry(settings)
            assert not abandoned.exists() and own.is_dir()
        assert registry.list() == []


def test_a_bundle_is_whole_or_no_bundle_when_writing_it_is_cut_at_any_write(
    tmp_path: Path, fill_bundle: Any
) -> None:
    for n in range(1, 20):
        directory = tmp_path / f"b{n}"

        def work(directory: Path = directory, n: int = n) -> None:
            fail_nth_call(n, die)
            fill_bundle(directory)

        ended = in_child(work)
        if (directory / MANIFEST).exists():
            open_bundle(directory)
        if ended == 0:
            assert (directory / MANIFEST).exists() and n > 3
            return
    pytest.fail("the work never came to its end")


@pytest.mark.parametrize("after_s", [0.02, 0.1, 0.25])
def test_a_process_killed_at_any_time_while_it_adds_leaves_a_registry_that_works(
    settings: Settings, fill_bundle: Any, add: Any, after_s: float
) -> None:
    Registry(settings).database.dispose()
    child = os.fork()
    if child == 0:
        registry = Registry(settings)
        for number in range(10_000):
            with registry.staging() as staging:
                fill_bundle(staging, salt=f"{number}")
                registry.add(staging, "tiny")
        os._exit(0)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    registry = Registry(settings)
    listed = [version for model in registry.list() for version in model.versions]
    assert [version.version for version in reversed(listed)] == list(range(1, len(listed) + 1))
    for version in listed:
        registry.verify(version)
    assert add(registry).version == len(listed) + 1
