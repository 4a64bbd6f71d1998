"""`everlearn jobs`: on the database itself, whether or not anything serves."""

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from typer.testing import Result

from tests.continual.queue.conftest import Installation


@pytest.fixture
def run(command: Callable[..., Result]) -> Callable[..., Result]:
    return partial(command, "jobs")


def test_a_job_is_created_listed_shown_and_cancelled(
    run: Callable[..., Result], installation: Installation, tmp_path: Path
) -> None:
    (tmp_path / "My RFCs.jsonl").write_text('{"text": "x"}\n' * 8)
    (tmp_path / "recipe.yaml").write_text("epochs: 3\ngate: {min_gain: 0.2}\n")
    made = run("create", "My RFCs.jsonl", "--model", "tiny", "--recipe", "recipe.yaml")
    assert made.exit_code == 0, made.output
    id = made.stdout.strip().splitlines()[-1]
    shown = json.loads(run("show", id, "--json").stdout)
    assert (shown["state"], shown["recipe"]["epochs"], shown["recipe"]["domain"]) == ("queued", 3, "my-rfcs")
    assert shown["recipe"]["gate"]["min_gain"] == 0.2
    listed = run("ls").stdout
    assert id in listed and "my-rfcs" in listed and "queued" in listed
    assert "Created fine-tuning job" in run("events", id).stdout
    assert run("pause", id).stdout.strip() == f"{id} is paused"
    assert json.loads(run("resume", id, "--json").stdout)["state"] == "queued"
    assert run("cancel", id).stdout.strip() == f"{id} is cancelled"
    late = run("pause", id)
    assert late.exit_code == 2 and "has been cancelled already" in late.stderr
    assert "recipe.gate.min_gain" in run("show", id).stdout
    assert installation.files.get(shown["training_file"]).filename == "My RFCs.jsonl"


def test_a_wrong_recipe_is_refused_with_its_line_and_an_unknown_model_leaves_no_file(
    run: Callable[..., Result], installation: Installation, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join("abcdefgh"))
    (tmp_path / "recipe.yaml").write_text("epochs: 3\nrepaly: {share: 1}\n")
    wrong = run("create", "a.txt", "--model", "tiny", "--recipe", "recipe.yaml")
    assert wrong.exit_code == 2
    assert "recipe.yaml:2: " in wrong.stderr and "did you mean 'replay'" in wrong.stderr
    unknown = run("create", "a.txt", "--model", "tinny")
    assert unknown.exit_code == 1 and "did you mean 'tiny'" in unknown.stderr
    assert [file.id for file in installation.files.list()] == [installation.file.id]
    assert run("show", "ftjob-nope").exit_code == 1


@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("failed", 1)])
def test_waiting_follows_a_job_to_its_end_and_exits_by_it(
    run: Callable[..., Result], installation: Installation, tmp_path: Path, state: str, code: int
) -> None:
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join("abcdefgh"))

    def work() -> None:
        while not installation.jobs.queued():
            time.sleep(0.05)
        lease = installation.jobs.claim(installation.jobs.queued()[0], "test")
        assert lease
        installation.jobs.event(lease, "Step 1: loss 2.5", {"step": 1, "train_loss": 2.5})
        error = {"code": "gate_refused", "message": "it forgets"} if state == "failed" else None
        installation.jobs.finish(lease, state, error=error, result_model="tiny@1" if code == 0 else None)  # type: ignore[arg-type]

    worker = threading.Thread(target=work)
    worker.start()
    done = run("create", "a.txt", "--model", "tiny", "--wait")
    worker.join()
    assert done.exit_code == code
    assert "Step 1: loss 2.5" in done.stdout
    assert "tiny@1" in done.stdout if code == 0 else "it forgets" in done.stderr
    id = installation.jobs.list()[0].id
    lines = run("events", id, "--follow", "--json").stdout.splitlines()
    assert [json.loads(line)["data"] for line in lines][2] == {"step": 1, "train_loss": 2.5}
