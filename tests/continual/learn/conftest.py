"""A tiny language model that knows a little, in a home of its own, and jobs that teach it more."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import insert

from compress.export import export_onnx
from continual.queue.jobs import Jobs
from continual.queue.states import Job, Lease
from continual.recipe import ContinualRecipe
from everlearn.importing.sources import import_model
from everlearn.registry.database import read, write
from everlearn.registry.registry import Registry
from everlearn.registry.tables import FileRow
from everlearn.settings import Settings
from tests.support.tiny_models import write_llama
from train.evaluate.held_out_text import held_out_text, token_windows

RECIPE: dict[str, Any] = {
    "epochs": 1,
    "lr": 1e-3,
    "batch_tokens": 512,
    "sequence_tokens": 64,
    "micro_batch": 8,
    "held_fraction": 0.2,
    "threads": 1,
    "dtype": "float32",
    "replay": {"held_tokens": 1024, "share": 0.5, "base": 0.5, "buffer_tokens": 4000},
    "generation": {"tokens": 2048, "sample_tokens": 64},
    "gate": {"max_forgetting": 0.5, "min_gain": 0.05, "resamples": 200},
}


def recipe(**changed: Any) -> ContinualRecipe:
    """``RECIPE`` with some of it changed; parts are changed key by key."""
    parts = {
        key: {**RECIPE[key], **value} if isinstance(value, Mapping) else value
        for key, value in changed.items()
    }
    return ContinualRecipe.model_validate(RECIPE | parts)


def sentences(subject: str, seed: int = 0, count: int = 120) -> str:
    """JSON lines of a little world, each its own: something to learn that is not in the general text."""
    draw = random.Random(f"{subject} {seed}")
    words = [f"{subject}{ending}" for ending in ("ox", "um", "ile", "and", "eta", "or")]
    lines = []
    for number in range(count):
        told = ". ".join(
            f"The {draw.choice(words)} of {draw.choice(words)} gives {draw.choice(words)} to the {words[0]}"
            for _ in range(4)
        )
        lines.append(json.dumps({"text": f"Tale {number} {subject}: {told}."}))
    return "\n".join(lines) + "\n"


def noise(count: int = 60) -> str:
    """JSON lines of letters without any order."""
    draw = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789#%&/()=?*+"
    return "".join(
        json.dumps({"text": " ".join("".join(draw.choices(letters, k=9)) for _ in range(20))}) + "\n"
        for _ in range(count)
    )


@dataclass
class Home:
    """An installation with the model ``tiny``."""

    settings: Settings

    @property
    def registry(self) -> Registry:
        return Registry(self.settings)

    @property
    def jobs(self) -> Jobs:
        return Jobs(self.settings)

    def submit(self, content: str | bytes, recipe: ContinualRecipe, name: str = "tales.jsonl") -> Lease:
        """Uploads, creates and claims a job."""
        job = self.jobs.create(model="tiny", training_file=self.upload(content, name), recipe=recipe)
        return self.claim(job.id)

    def upload(self, content: str | bytes, name: str) -> str:
        data = content if isinstance(content, bytes) else content.encode()
        file_id = f"file-{hashlib.sha256(f'{time.time_ns()}'.encode()).hexdigest()[:12]}"
        (self.settings.directory("files") / file_id).write_bytes(data)
        row = {
            "id": file_id,
            "filename": name,
            "purpose": "fine-tune",
            "size_bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        with write(self.registry.database) as connection:
            connection.execute(insert(FileRow).values(row))
        return file_id

    def claim(self, job_id: str) -> Lease:
        lease = self.jobs.claim(job_id, "test")
        assert lease
        return lease

    def request(self, lease: Lease) -> dict[str, Any]:
        return {**vars(lease), "settings": self.settings.model_dump(mode="json")}

    def run(self, lease: Lease) -> Job:
        """The whole job, in this process."""
        from continual.pipeline import run

        run(self.request(lease), lambda step, done=None: None)
        return self.jobs.get(lease.job_id)

    def weights(self, ref: str) -> dict[str, str]:
        """sha256 of every file of a version that decides what it answers."""
        version = self.registry.resolve(ref)
        return {name: entry.sha256 for name, entry in version.manifest.files.items()}

    def buffer(self) -> list[tuple[Any, ...]]:
        """All rows of the buffer, but for which job brought them."""
        from sqlalchemy import select

        from everlearn.registry.tables import ReplayExampleRow as Row

        columns = (Row.domain, Row.split, Row.sha256, Row.tokens)
        with read(self.registry.database) as connection:
            return sorted(tuple(row) for row in connection.execute(select(*columns)))


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers that know English letters a little: trained for a few seconds on the shipped text."""
    directory = tmp_path_factory.mktemp("base")
    model = write_llama(directory).train()
    windows = torch.from_numpy(token_windows(directory / "tokenizer.json", held_out_text().text, 20_000, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(100):
        batch = windows[torch.randint(len(windows), (16,))]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def float_home(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> Path:
    """A home whose ``tiny`` has float weights alone."""
    home = tmp_path_factory.mktemp("float") / "home"
    import_model(Settings(home=home), str(base_dir), name="tiny")
    return home


@pytest.fixture(scope="session")
def served_home(tmp_path_factory: pytest.TempPathFactory, float_home: Path) -> Path:
    """A home whose ``tiny`` has an int8 champion besides."""
    home = tmp_path_factory.mktemp("served") / "home"
    shutil.copytree(float_home, home)
    export_onnx(Settings(home=home), "tiny", "int8-onnx")
    return home


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path, str], Home]:
    """A home like another, to change."""

    def copy(home: Path, name: str = "home") -> Home:
        shutil.copytree(home, tmp_path / name)
        return Home(Settings(home=tmp_path / name))

    return copy


@pytest.fixture
def home(copy_of: Callable[[Path, str], Home], float_home: Path) -> Home:
    """Float weights are the champion: the quick way round."""
    return copy_of(float_home, "home")
