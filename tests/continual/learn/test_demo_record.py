"""What the demonstration's report counts as gained, and as forgotten."""

from pathlib import Path

import pytest

from continual.demo.naive import Record
from continual.demo.report import Outcome, Taught, write_report
from continual.demo.visitor import Visitor

START = {"poems": 3.80, "scripture": 2.50, "general": 3.95}
RECORD = Record(
    ("poems", "scripture"),
    (
        START,
        {"poems": 3.00, "scripture": 2.70, "general": 3.98},  # the first lesson hurts what is taught second
        {"poems": 3.05, "scripture": 2.10, "general": 3.90},
    ),
)


def test_repairing_what_an_earlier_lesson_damaged_is_no_gain() -> None:
    assert RECORD.gained == pytest.approx({"poems": 0.75, "scripture": 0.40, "general": 0.05})
    assert RECORD.gain == pytest.approx(0.40)


def test_forgetting_is_counted_from_the_best_moment_of_each_domain() -> None:
    assert RECORD.forgotten == pytest.approx({"poems": 0.05, "scripture": 0.0, "general": 0.0})


def test_damage_to_a_domain_that_is_taught_later_is_told() -> None:
    assert RECORD.worst_loss == ("scripture", pytest.approx(0.20))


def test_the_page_says_what_the_comparison_left_out(tmp_path: Path) -> None:
    lesson = Taught("poems", "Poems", "a", "b", "m@2", "c", "m@4", 5000, 5000, 100.0, 0.5, 0.0, 91.7, "3:00")
    outcome = Outcome("m", "2 cores", "1:00", [lesson], RECORD, RECORD, 270.6, "40%", 0.15, "m@2", 2.0)
    write_report(tmp_path / "page.html", outcome, Visitor("http://127.0.0.1:1", "m"))
    page = " ".join((tmp_path / "page.html").read_text().split())
    assert "0.15 nats per token of forgetting (the default is 0.05)" in page
    assert "Furthest below its best after any lesson: scripture, by 0.200" in page
