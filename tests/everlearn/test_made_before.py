"""What commit c65ca05 left is taken up: its database and bundles, a training run and a job killed in their midst.

``installation.tar.xz`` was made by the commands of that commit; ``make.py`` beside it makes it again.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers import Tokenizer
from typer.testing import CliRunner

from continual.learn.legacy_job_folder import take_up
from continual.queue.jobs import Jobs
from continual.queue.steps import Steps
from everlearn.cli.commands import app
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.support.made_by_c65ca05.make import machine
from tests.support.serve.supervised import REAL, eventually, supervised
from train.data.card import DataCard
from train.models.load import load_causal_lm

ARCHIVE = Path(__file__).parents[1] / "support" / "made_by_c65ca05" / "installation.tar.xz"
THEN = {"data.normalize": "true", "data.strip": "true"}
"""What c65ca05 did to every text, and what a recipe has to ask for by now."""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made-before")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected(unpacked: Path) -> dict[str, Any]:
    return json.loads((unpacked / "expected.json").read_bytes())


@pytest.fixture
def settings(unpacked: Path, tmp_path: Path) -> Settings:
    """The installation, to change."""
    shutil.copytree(unpacked / "home", tmp_path / "home")
    return Settings(home=tmp_path / "home")


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A command of today on it; what it printed as JSON, or its exit code and output where that is not 0."""
    monkeypatch.setenv("EVERLEARN_HOME", str(settings.home))

    def invoke(*arguments: str) -> Any:
        done = CliRunner().invoke(app, [*arguments, "--json"])
        return json.loads(done.stdout) if done.exit_code == 0 else (done.exit_code, done.output)

    return invoke


def test_every_listing_says_what_it_said(
    run: Callable[..., Any], settings: Settings, expected: dict[str, Any]
) -> None:
    """Models, jobs, the replay buffer, keys, usage, audit: all that was printed, and perhaps more."""
    for listing in expected["commands"]:
        printed = json.loads(json.dumps(listing["printed"]).replace("HOME", str(settings.home)))
        missing = list(differences(printed, run(*listing["command"])))
        assert not missing, f"everlearn {' '.join(listing['command'])}: {missing[:5]}"
    assert len(expected["commands"]) > 12


def test_a_bundle_gives_the_logits_it_gave(settings: Settings, expected: dict[str, Any]) -> None:
    registry = Registry(settings)
    for model in registry.list():
        for version in model.versions:
            registry.verify(version)
    path = registry.path(registry.resolve("tiny@1"))
    ids = Tokenizer.from_file(str(path / "tokenizer.json")).encode(expected["text"]).ids
    with torch.inference_mode():
        last = load_causal_lm(path)(input_ids=torch.tensor([ids])).logits[0, -1]
    assert ids == expected["logits"]["ids"]
    assert last.tolist() == pytest.approx(expected["logits"]["last"], abs=1e-3)


def test_a_killed_training_run_goes_on_from_its_checkpoint(
    run: Callable[..., Any], unpacked: Path, settings: Settings, expected: dict[str, Any]
) -> None:
    """Cleaning was no choice then. The recipe of today leaves texts as they are, and so is another run."""
    folder = settings.home / "runs" / expected["killed_run"]
    command = ["train", str(unpacked / "files" / "killed.yaml"), "--run-dir", str(folder)]
    then = (folder / "steps.jsonl").read_bytes()
    (saved,) = (folder / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert step < then.count(b"\n") < len(expected["run"]["losses"])

    code, told = run(*command)
    assert code == 1 and "data.normalize: True → False" in told and "data.strip: True → False" in told
    assert (folder / "steps.jsonl").read_bytes() == then and saved.is_dir()

    made = run(*command, *(f"--set={key}={value}" for key, value in THEN.items()))
    now = (folder / "steps.jsonl").read_bytes()
    assert now.splitlines()[:step] == then.splitlines()[:step], "steps before the checkpoint were done again"
    losses = [json.loads(line)["loss"] for line in now.splitlines()]
    assert losses == pytest.approx(expected["run"]["losses"], rel=1e-3)
    assert made["bundle"]["recipe"]["train"]["base"] == "tiny@1"
    assert_same_bits(made["bundle"], expected["run"]["weights"], expected)
    assert run(*command, *(f"--set={key}={value}" for key, value in THEN.items()))["ref"] == made["ref"]


def test_a_jobs_folder_is_completed_once(settings: Settings, expected: dict[str, Any]) -> None:
    """What it trained and drew stays; what it scored goes, and a run that had no checkpoint yet."""
    steps = Steps(settings.directory("jobs") / expected["killed_job"])
    run = steps.folder / "run"
    steps.do("scores-champion-float", lambda directory: {"nll": [1.0], "tokens": [1]})
    before = steps.find("replay"), steps.find("data")
    assert take_up(steps)
    replay, data = steps.find("replay"), steps.find("data")
    assert replay and data and before[0] and replay.result.items() >= before[0].result.items()
    assert replay.result["domains"] == ["base", "sea"]
    assert DataCard.model_validate(data.result).read == 60
    assert run.is_dir() and steps.find("scores-champion-float") is None
    assert not take_up(steps)

    steps.amend(replay, before[0].result)
    shutil.rmtree(run / "checkpoints")
    assert take_up(steps) and not run.exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_takes_key_model_and_jobs_up(settings: Settings, expected: dict[str, Any]) -> None:
    """The killed job goes on from its checkpoint and succeeds; the one that waited is begun after it."""
    killed, waiting = expected["killed_job"], expected["waiting_job"]
    run = settings.directory("jobs") / killed / "run"
    (saved,) = (run / "checkpoints").iterdir()
    environment = {
        f"EVERLEARN_CONTINUAL__{key}": value
        for key, value in {
            "WORKER": "on",
            "LEASE_S": "3",
            "HEARTBEAT_S": "0.5",
            "THREADS": "1",
            "NICE": "0",
        }.items()
    }
    jobs = Jobs(settings)
    jobs.pause(waiting)  # it would be begun first where a worker starts sooner than the dead one's lease ends
    with supervised(settings.home, "tiny", command=REAL, **environment) as server:  # type: ignore[arg-type]
        server.ready()
        assert_same_answer(server.url, expected)
        eventually(lambda: jobs.get(killed).is_over, within_s=300)
        jobs.resume(waiting)
        eventually(lambda: any("the data is ready" in said for said in told(jobs, waiting)), within_s=200)
    then, job = expected["job"], jobs.get(killed)
    assert job.state == "succeeded", job.error
    assert job.report and job.attempt == 2
    steps = [int(said.split()[1]) for said in told(jobs, killed) if said.startswith("step ")]
    again = next(place for place in range(1, len(steps)) if steps[place] <= steps[place - 1])
    assert steps[again] == int(saved.name.removeprefix("step-")) + 1, "it did not go on from its checkpoint"
    assert job.report["mixture"] == then["report"]["mixture"]
    loss = job.report["training"]["train_loss"]
    assert loss == pytest.approx(then["report"]["training"]["train_loss"], rel=1e-3)
    versions = {version.digest: version for version in Registry(settings).versions("tiny")}
    served = Registry(settings).resolve(str(job.result_model))
    trained = versions[str(served.parent_digest)]
    assert_same_bits(trained.manifest.model_dump(mode="json"), then["weights"], expected)
    assert Registry(settings).resolve("tiny@champion").ref == served.ref


def told(jobs: Jobs, job: str) -> list[str]:
    return [event.message for event in jobs.events(job)]


def assert_same_answer(url: str, expected: dict[str, Any]) -> None:
    """The int8 champion, asked with the key that was made then, finds the same tokens as likely."""
    body = {
        "model": "tiny",
        "messages": expected["chat"],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 5,
    }
    asked = httpx.post(
        f"{url}/v1/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {expected['secret']}"},
        timeout=60,
    )
    assert asked.status_code == 200, asked.text
    assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 401
    then, now = (
        answer["choices"][0]["logprobs"]["content"][0] for answer in (expected["answer"], asked.json())
    )
    there, found = (
        {tuple(each["bytes"]): each["logprob"] for each in one["top_logprobs"]} for one in (now, then)
    )
    assert len(there.keys() & found.keys()) >= 4
    for token in there.keys() & found.keys():
        assert there[token] == pytest.approx(found[token], abs=0.1), token


def assert_same_bits(bundle: dict[str, Any], weights: str, expected: dict[str, Any]) -> None:
    """On the kind of machine where it was made; other CPUs round otherwise."""
    if machine() == expected["machine"]:
        assert bundle["files"]["model.safetensors"]["sha256"] == weights


def differences(then: Any, now: Any, place: str = "") -> Any:
    """Where ``now`` lacks something of ``then`` or has it otherwise; what an object has besides does not count."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key, value in then.items():
            if key in now:
                yield from differences(value, now[key], f"{place}.{key}")
            else:
                yield f"{place}.{key} is gone"
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, (one, other) in enumerate(zip(then, now, strict=True)):
            yield from differences(one, other, f"{place}[{number}]")
    elif then != now:
        yield f"{place} was {then!r}, is {now!r}"
