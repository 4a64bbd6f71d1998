"""The whole house goes round while its parts are killed: nothing is lost, nothing is done twice."""

import os
import time
from pathlib import Path

import pytest

from tests.support.circle import PARTS, Killer, Result, go_round, make_home, served

CIRCLES = int(os.environ.get("EVERLEARN_CIRCLES", "3"))
"""How many disturbed circles; ten take about ten minutes."""

WITHIN = 0.7
"""The share of an undisturbed circle in which all kills fall: another one may be that much faster, and must not end first."""


@pytest.fixture(scope="module")
def base_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("circle") / "home"
    make_home(home)
    return home


@pytest.fixture(scope="module")
def undisturbed(base_home: Path) -> tuple[Result, float]:
    """A circle that nobody disturbs, and the seconds it takes."""
    home = base_home.parent / "undisturbed"
    with served(base_home, home) as server:
        started = time.monotonic()
        return go_round(server, home), time.monotonic() - started


def test_the_stock_client_teaches_a_model_and_talks_to_it(undisturbed: tuple[Result, float]) -> None:
    result, _ = undisturbed
    assert result.job["fine_tuned_model"] == "tiny@4"
    assert result.versions == 4 and result.completions == 1 and result.insertions == 1
    assert result.answer.strip()


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize("seed", range(CIRCLES))
def test_kills_change_nothing(base_home: Path, undisturbed: tuple[Result, float], seed: int) -> None:
    expected, seconds = undisturbed
    home = base_home.parent / f"disturbed-{seed}"
    with served(base_home, home) as server, Killer(server, seed, WITHIN * seconds) as killer:
        result = go_round(server, home)
    print(f"killed {killer.plan}")
    assert sorted(killer.killed) == sorted(PARTS)
    assert result.weights == expected.weights
    assert result.versions == expected.versions
    assert result.buffer == expected.buffer and len({row[:2] for row in result.buffer}) == len(result.buffer)
    assert (result.insertions, result.completions) == (1, 1)
    assert result.answer == expected.answer
