"""Whole jobs on a tiny real model: what is learned is promoted, what is worse is refused, and nothing is left over."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from sqlalchemy import update

from continual.learn.best import recall, summary
from continual.learn.replay import read_buffer
from continual.pipeline import Pipeline
from continual.queue.files import Files
from continual.queue.states import Job, Lease
from everlearn.errors import InvalidInput
from everlearn.importing.sources import import_model
from everlearn.processes.child import run_child
from everlearn.registry.database import read, write
from everlearn.registry.tables import ReplayExampleRow
from everlearn.settings import Settings
from tests.continual.learn.conftest import Home, noise, recipe, sentences
from tests.train.data.reading import bombs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TALES, MYTHS = sentences("zor"), sentences("quib", seed=1)


@dataclass
class Taught:
    """A home in which one job has succeeded."""

    home: Path
    job: Job
    weights: dict[str, str]
    buffer: list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, float_home: Path) -> Taught:
    folder = tmp_path_factory.mktemp("taught") / "home"
    shutil.copytree(float_home, folder)
    home = Home(Settings(home=folder))
    job = home.run(home.submit(TALES, recipe()))
    assert job.state == "succeeded", job.error
    return Taught(folder, job, home.weights("tiny"), home.buffer())


def test_a_job_teaches_something_new_and_is_promoted(taught: Taught, copy_of: Callable[..., Home]) -> None:
    home, report = copy_of(taught.home), taught.job.report
    assert report and report["outcome"] == "promoted" and report["result"] == taught.job.result_model
    gate = report["gates"]["float"]
    assert gate["gain"]["low"] > 0.5 and [kept["domain"] for kept in gate["kept"]] == ["general"]
    assert home.registry.aliases("tiny") == {"champion": 2}
    champion = home.registry.resolve("tiny")
    assert champion.parent_digest == home.registry.resolve("tiny@1").digest
    assert champion.manifest.recipe["continual"] == recipe().model_dump(mode="json")
    mixture = report["mixture"]
    assert mixture["base"]["tokens"] == pytest.approx(0.5 * mixture["new"]["tokens"], rel=0.05)
    assert {(row[0], row[1]) for row in taught.buffer} == {
        ("tales", "train"),
        ("tales", "held"),
        ("base", "train"),
    }
    (general,) = gate["kept"]
    assert general["best"]["begins"] and general["best"]["version"] == "tiny@1" and general["documents"] >= 4
    with read(home.registry.database) as connection:
        remembered = summary(recall(connection, "tiny", champion.digest))
        held = read_buffer(connection, "tiny", "held", "tales").kept
    assert remembered["tales"]["version"] == "tiny@2" and remembered["tales"]["examples"] == len(held)
    assert remembered["general"]["nats"] == pytest.approx(
        min(general["champion"], general["candidate"]), abs=1e-5
    )
    assert len({kept.document for kept in held}) > 4
    assert not (taught.home / "jobs" / taught.job.id).exists()
    told = [event.message for event in home.jobs.events(taught.job.id)]
    assert any(message.startswith("step ") for message in told) and "gate as float: passed" in told
    assert any(message.startswith("the data is ready: ") and "examples read" in message for message in told)


def test_a_job_leaves_its_figures_as_a_file(taught: Taught, copy_of: Callable[..., Home]) -> None:
    home, report = copy_of(taught.home), taught.job.report
    files = Files(home.settings)
    file = files.get(taught.job.result_file or "")
    assert (file.purpose, file.filename) == ("fine-tune-results", f"{taught.job.id}-step-metrics.csv")
    rows = list(csv.DictReader(files.path(file).read_text().splitlines()))
    events = [event.data for event in home.jobs.events(taught.job.id) if "train_loss" in event.data]
    assert report and [int(row["step"]) for row in rows] == list(range(events[-1]["total_steps"] + 1))
    for event in events:
        row = rows[event["step"]]
        assert float(row["train_loss"]) == pytest.approx(event["train_loss"], abs=1e-6)
        assert float(row["learning_rate"]) == pytest.approx(event["lr"], rel=1e-4)
    gain = report["gates"]["float"]["gain"]
    assert [row["valid_loss"] for row in rows if row["valid_loss"]] == [
        f"{gain['champion']:.6f}",
        f"{gain['candidate']:.6f}",
    ]
    assert int(rows[-1]["tokens"]) == taught.job.trained_tokens


def test_a_second_domain_replays_the_first_and_skips_what_rotted(
    taught: Taught, copy_of: Callable[..., Home]
) -> None:
    home = copy_of(taught.home)
    with write(home.registry.database) as connection:
        rotten = read_buffer(connection, "tiny", "train", "tales").kept[0].sha256
        row = ReplayExampleRow.sha256 == rotten
        connection.execute(update(ReplayExampleRow).where(row).values(content={"ids": [3]}))
    doubled = MYTHS + "".join(MYTHS.splitlines(keepends=True)[::3])
    job = home.run(home.submit(doubled, recipe(), "myths.jsonl"))
    assert job.state == "succeeded", job.error
    warned = [event.message for event in home.jobs.events(job.id) if event.level == "warn"]
    assert any("25% of the examples" in message and "exact duplicates" in message for message in warned)
    assert job.report and job.report["corrupt_examples"] == [rotten]
    assert job.report["generated"] == 0
    assert job.report["mixture"]["replay tales"]["tokens"] > 1000
    general, tales = job.report["gates"]["float"]["kept"]
    assert (general["domain"], tales["domain"]) == ("general", "tales")
    assert tales["best"]["version"] == "tiny@2" and not tales["best"]["begins"]
    assert tales["best"]["nats"] == pytest.approx(tales["champion"], abs=1e-5)
    assert "damaged" in " ".join(event.message for event in home.jobs.events(job.id))
    assert {row[0] for row in home.buffer()} == {"tales", "myths", "base"}


def test_a_poisoned_set_is_refused_and_nothing_changes(taught: Taught, copy_of: Callable[..., Home]) -> None:
    home = copy_of(taught.home)
    aliases, buffer = home.registry.aliases("tiny"), home.buffer()
    poison = recipe(lr=1e-2, replay={"share": 0, "base": 0})
    job = home.run(home.submit(noise(), poison, "noise.jsonl"))
    assert job.state == "failed" and job.error and job.error["code"] == "gate_refused"
    assert "tales: forgot" in job.error["message"]
    assert job.report and job.report["outcome"] == "refused"
    assert job.report["gates"]["float"]["reasons"]
    assert (home.registry.aliases("tiny"), home.buffer()) == (aliases, buffer)
    assert len(home.registry.versions("tiny")) == 2
    assert not (home.settings.home / "jobs" / job.id).exists()


def test_killed_at_random_moments_the_result_is_the_same_to_the_bit(
    taught: Taught, copy_of: Callable[..., Home], float_home: Path
) -> None:
    """Also under another job's id, and later than the undisturbed run."""
    home = copy_of(float_home)
    lease = home.submit(TALES, recipe(checkpoint_every_s=0.01))
    draw = random.Random(7)
    for moment in (draw.uniform(0.0, 0.2), draw.uniform(0.25, 0.69), draw.uniform(0.7, 0.99)):
        child = start(home, lease)
        wait_for(child, moment)
        time.sleep(draw.uniform(0, 0.3))
        child.send_signal(signal.SIGKILL)
        child.wait()
        if not home.jobs.release(lease):  # as the queue does, but for the count of attempts
            break  # the last kill came after the commit
        lease = home.claim(lease.job_id)
    job = home.jobs.get(lease.job_id)
    if not job.is_over:
        job = home.run(lease)
    assert job.state == "succeeded", job.error
    assert home.weights("tiny") == taught.weights
    assert home.buffer() == taught.buffer
    assert len(home.registry.versions("tiny")) == 2


def wait_for(child: subprocess.Popen[bytes], moment: float) -> None:
    """Until the child says that this share of the job is done, or says nothing more."""
    assert child.stdout
    for line in child.stdout:
        if (json.loads(line).get("done") or 0) >= moment:
            return


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (330_000,) * 2); "


def start(home: Home, lease: Lease, first: str = "") -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", f"{first}from continual.pipeline import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert child.stdin
    child.stdin.write(json.dumps(home.request(lease)).encode() + b"\n")
    child.stdin.flush()
    return child


def test_a_disk_that_takes_no_more_ends_the_job_and_leaves_the_champion(home: Home) -> None:
    """The trained weights are the first file that is larger than what this process may write."""
    lease = home.submit(TALES, recipe(epochs=1, batch_tokens=4096, replay={"base": 0}))
    child = start(home, lease, LIMITED)
    wait_for(child, 1.1)
    child.communicate()
    job = home.jobs.get(lease.job_id)
    assert job.state == "failed" and job.error and job.error["code"] == "disk_full", job.error
    assert "File too large" in job.error["message"]
    assert not (home.settings.home / "jobs" / job.id).exists()
    assert [version.ref for version in home.registry.versions("tiny")] == ["tiny@1"]
    assert home.buffer() == []


def test_a_broken_file_is_named_with_its_line(home: Home) -> None:
    job = home.run(home.submit('{"text": "fine and long enough to keep"}\n{"txt": 3}\n', recipe()))
    assert job.state == "failed" and job.error
    assert "tales.jsonl:2" in job.error["message"]
    assert home.buffer() == []


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (
            {"data_memory_bytes": 2**29},
            r"^bomb\.parquet takes more than 0\.5 GiB of memory to read: it is refused",
        ),
        ({"data_timeout_s": 0.5}, r"^bomb\.parquet takes longer than 0\.5 s to read: it is refused"),
    ],
)
def test_a_file_that_takes_too_much_to_read_fails_its_job_once_with_the_reason(
    home: Home, limits: dict[str, float], said: str
) -> None:
    """What cannot be told before reading: the process that reads has limits, and no other attempt is made."""
    continual = home.settings.continual.model_copy(update=limits)
    home.settings = home.settings.model_copy(update={"continual": continual})
    lease = home.submit(bombs.nulls_without_end(), recipe(), "bomb.parquet")
    child = start(home, lease)
    wait_for(child, 1.1)
    child.communicate()
    job = home.jobs.get(lease.job_id)
    assert (job.state, job.attempt) == ("failed", 1)
    assert job.error and job.error["code"] == "invalid_input" and job.error["param"] == "training_file"
    assert re.search(said, job.error["message"]), job.error


def test_too_few_examples_to_measure_on_are_refused_where_the_job_is_made(home: Home) -> None:
    with pytest.raises(InvalidInput, match=r"tales\.jsonl holds 6 documents, and a job takes at least 8"):
        home.submit(sentences("zor", count=6), recipe())
    many = sentences("zor", count=6) * 10
    job = home.run(home.submit(many, recipe(sequence_tokens=512)))
    assert job.state == "failed" and job.error and job.error["code"] == "invalid_input"
    assert "6 of 60 documents are left (54 exact duplicates)" in job.error["message"]
    assert "held_fraction" in job.error["message"]


def test_a_file_taught_before_and_rolled_back_is_measured_on_what_is_kept_or_refused_with_the_reason(
    home: Home,
) -> None:
    """The first time a validation file kept all of it for training: what is held out now was trained on."""
    text, everything = sentences("zor", count=40), {"buffer_tokens": 100_000}
    job = home.jobs.create(
        model="tiny", training_file=home.upload(text, "tales.jsonl"), recipe=recipe(replay=everything),
        validation_file=home.upload(sentences("zor", seed=9, count=12), "more.jsonl"),
    )  # fmt: skip
    assert home.run(home.claim(job.id)).state == "succeeded"
    home.registry.promote("tiny@1")
    other = home.run(home.submit(text, recipe(domain="other", replay=everything)))
    assert other.state == "failed" and other.error
    assert re.match(
        r"0 documents of the file are held out to measure on \((\d+) of the \1 held-out examples were trained on by "
        r"earlier jobs and lie in the replay buffer: [0-9a-f]{12}, ",
        other.error["message"],
    ), other.error
    again = home.run(home.submit(text, recipe(replay=everything)))
    assert again.state == "succeeded", again.error
    told = [event.message for event in home.jobs.events(again.id)]
    assert any("that are kept of tales, too" in message and "trained on by" in message for message in told)
    assert any(message.startswith("the domain tales is known: ") for message in told)
    assert again.report and again.report["gates"]["float"]["gain"]["documents"] >= 10


def test_a_text_without_parts_is_told_to_be_one_document(home: Home) -> None:
    tales = [json.loads(line)["text"] for line in sentences("zor", count=400).splitlines()]
    job = home.run(home.submit("\n\n".join(tales), recipe(generation={"tokens": 512}), "tales.txt"))
    assert job.report and job.report["gates"]["float"]["gain"]["documents"] >= 4
    told = [event.message for event in home.jobs.events(job.id) if event.level == "warn"]
    assert any(message.startswith("tales.txt is one text, cut at blank lines") for message in told)


def test_a_loss_that_is_no_number_ends_the_job_and_registers_nothing(tmp_path: Path, base_dir: Path) -> None:
    directory = tmp_path / "broken"
    shutil.copytree(base_dir, directory)
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"][:] = 1e37  # finite, and so are its predictions; the gradient is not
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    home = Home(Settings(home=tmp_path / "home"))
    import_model(home.settings, str(directory), name="tiny")
    job = home.run(home.submit(TALES, recipe(replay={"base": 0})))
    assert job.state == "failed" and job.error and job.error["code"] == "diverged"
    assert [version.ref for version in home.registry.versions("tiny")] == ["tiny@1"]
    assert home.buffer() == []


def test_a_champion_that_changed_makes_the_job_plan_anew(
    taught: Taught, copy_of: Callable[..., Home]
) -> None:

    from continual.pipeline import Pipeline

    home = copy_of(taught.home)
    lease = home.submit(MYTHS, recipe(), "myths.jsonl")

    def pipeline() -> Pipeline:
        return Pipeline(home.settings, lease, lambda step, done: None, threading.Event())

    assert pipeline().plan().champion == "tiny@2"
    assert pipeline().plan().champion == "tiny@2"
    home.registry.promote("tiny@1")
    assert pipeline().plan().champion == "tiny@1"


def test_an_int8_champion_is_followed_by_an_int8_candidate_gated_as_served(
    served_home: Path, copy_of: Callable[..., Home]
) -> None:
    home = copy_of(served_home)
    lease = home.submit(TALES, recipe())
    result = run_child("continual.pipeline", home.request(lease), lambda step, done: None)
    job = home.jobs.get(lease.job_id)
    assert job.state == "succeeded", job.error
    assert result == {"state": "succeeded", "result_model": "tiny@4"}
    assert job.report and list(job.report["gates"]) == ["float", "served"]
    served = home.registry.resolve("tiny")
    assert (served.ref, served.format, served.manifest.recipe["export"]["to"]) == (
        "tiny@4", "onnx-genai", "int8-onnx",
    )  # fmt: skip
    assert served.parent_digest == home.registry.resolve("tiny@3").digest
    assert home.registry.resolve("tiny@3").parent_digest == home.registry.resolve("tiny@1").digest
    assert home.registry.aliases("tiny") == {"champion": 4, "previous": 2}
    with read(home.registry.database) as connection:
        assert read_buffer(connection, "tiny", "held", "tales").kept
