"""Errors of a child process reach its parent as themselves, or as the nearest kind that both know."""

import pytest

from everlearn.child import run_child
from everlearn.errors import Conflict
from everlearn.progress import silent


def test_an_error_of_the_childs_own_keeps_its_code_message_and_param() -> None:
    with pytest.raises(Conflict, match="seat 4 is taken") as caught:
        run_child("tests.everlearn.fails_in_child", {"seat": "seat 4"}, silent)
    assert (caught.value.code, caught.value.param) == ("taken", "seat")
