"""Errors of a child process reach its parent as themselves, or as the nearest kind that both know; one that reads
what users bring takes a bounded share of the machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from everlearn.errors import Conflict, InvalidInput, Unavailable
from everlearn.processes.child import Limits, run_child
from everlearn.progress import silent

LIMITS = Limits("x.bin", memory_bytes=2**29, wall_s=60, param="file")
HUNGRY = "tests.everlearn.processes.hungry_child"


def test_an_error_of_the_childs_own_keeps_its_code_message_and_param() -> None:
    with pytest.raises(Conflict, match="seat 4 is taken") as caught:
        run_child("tests.everlearn.processes.fails_in_child", {"seat": "seat 4"}, silent)
    assert (caught.value.code, caught.value.param) == ("taken", "seat")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            {"do": "eat", "bytes": 2**30},
            r"^x\.bin takes more than 0\.5 GiB of memory to read: it is refused$",
        ),
        ({"do": "abort"}, r"^x\.bin broke its reader, which was killed by SIGABRT"),
        ({"do": "raise"}, r"^x\.bin broke its reader, which exited with code 1 and said: KeyError: 'x'"),
    ],
)
def test_a_limited_child_that_fails_is_the_fault_of_the_file_it_read(request_: dict, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        run_child(HUNGRY, request_, silent, LIMITS)
    assert caught.value.param == "file"


@pytest.mark.parametrize("do", ["sleep", "spin"])
def test_a_limited_child_that_does_not_end_is_ended(do: str) -> None:
    limits = Limits("x.bin", memory_bytes=2**29, wall_s=1.5)
    start_s = time.monotonic()
    with pytest.raises(InvalidInput, match=r"^x\.bin takes longer than 1\.5 s to read: it is refused"):
        run_child(HUNGRY, {"do": do}, silent, limits)
    assert time.monotonic() - start_s < 20


def test_within_its_limits_a_child_answers_and_without_limits_its_death_is_nobodys_fault() -> None:
    assert run_child(HUNGRY, {"do": "eat", "bytes": 2**27}, silent, LIMITS) == {"bytes": 2**27}
    with pytest.raises(Unavailable, match="hungry_child was killed by SIGABRT"):
        run_child(HUNGRY, {"do": "abort"}, silent)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a child with its parent")
def test_a_child_that_never_lets_go_of_the_interpreter_ends_with_its_parent() -> None:
    program = (
        "from everlearn.processes.child import run_child; from everlearn.progress import silent\n"
        f"run_child({HUNGRY!r}, {{'do': 'spin'}}, lambda *said: print('on', flush=True))"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=env) as parent:
        assert parent.stdout and parent.stdout.readline()
        (child,) = psutil.Process(parent.pid).children()
        parent.send_signal(signal.SIGKILL)
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running()
