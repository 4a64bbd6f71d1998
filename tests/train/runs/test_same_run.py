"""What makes two commands one run: what recipe, files and base hold, and never where they lie."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from everlearn.cli.commands import app
from everlearn.errors import ConfigError, Conflict, Corrupt, NotFound
from everlearn.importing.sources import import_model
from everlearn.registry.registry import Registry, Version
from everlearn.settings import Settings
from train.data.store import open_store, write_store
from train.launch import Outcome, open_run
from train.recipe import TrainRecipe, read_recipe
from train.runs.claim import claimed, claimed_by_rank, wait_for_ranks
from train.runs.identity import contents_of
from train.runs.registered import Run, already_registered, find_run, register

REPOSITORY = Path(__file__).resolve().parents[3]
TEXT = "".join(
    f"Sentence number {n} tells of the {n * 7 % 100} rivers of a far land.\n\n" for n in range(300)
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path) -> Registry:
    """An installation of this test's own with the model ``tiny``, and a recipe with texts in this folder."""
    monkeypatch.setenv("EVERLEARN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    settings = Settings(home=tmp_path / "home")
    import_model(settings, str(base), name="tiny")
    texts = tmp_path / "texts"
    texts.mkdir()
    for part in range(3):
        (texts / f"{part}.txt").write_text(TEXT[part * 3000 : (part + 1) * 3000])
    (tmp_path / "held.txt").write_text(TEXT[-1500:])
    recipe = {
        "base": "tiny",
        "data": {"train": ["texts"], "held": ["held.txt"]},
        "sequence_tokens": 64,
        "batch_tokens": 256,
        "steps": 2,
        "threads": 1,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return Registry(settings)


def meant(registry: Registry, *overrides: str, run_dir: Path | None = None) -> Run:
    """The run that ``everlearn train recipe.yaml --set …`` means."""
    recipe = read_recipe(Path("recipe.yaml"), overrides)
    return find_run(registry, registry.settings.home / "runs", recipe, contents_of(recipe), run_dir)


def begin(registry: Registry, run: Run) -> None:
    """As far as a command comes that is killed at once."""
    assert run.base
    with claimed(run.folder):
        open_run(run.recipe, registry.path(run.base), None, run.folder, run.contents, run.base.ref)


def finish(registry: Registry, run: Run) -> Version:
    """As if a model had been trained: its base with another licence."""
    begin(registry, run)
    assert run.base
    model = run.folder / "model"
    shutil.copytree(registry.path(run.base), model, ignore=shutil.ignore_patterns("bundle.json"))
    (model / "LICENSE").write_text(f"made in {run.folder.name}")
    return register(registry, run, Outcome(model, {"steps": 2}, {"base": run.base.ref}))


def promoted(registry: Registry, base: Path) -> Version:
    """Another version of ``tiny``, which the name stands for from now on."""
    with registry.staging() as staging:
        shutil.copytree(registry.path(registry.resolve("tiny@1")), staging, dirs_exist_ok=True)
        (staging / "bundle.json").unlink()
        (staging / "LICENSE").write_text(str(time.monotonic()))
        from everlearn.bundles.bundle import write_bundle

        first = registry.resolve("tiny@1").manifest
        said = {"format": first.format, "task": first.task, "architecture": first.architecture}
        write_bundle(staging, name="tiny", parameters=first.parameters, **said)  # type: ignore[arg-type]
        version = registry.add(staging, "tiny")
    registry.promote(version.ref)
    return version


def test_the_same_command_is_the_finished_run(home: Registry) -> None:
    run = meant(home)
    made = finish(home, run)
    again = meant(home)
    assert again.folder == run.folder
    assert already_registered(home, again) == made


def edit_data() -> None:
    file = Path("texts/1.txt")
    file.write_text(file.read_text().replace("rivers", "mountains", 1))


def edit_in_place_with_the_old_time() -> None:
    file = Path("texts/1.txt")
    times = file.stat()
    file.write_text(file.read_text().replace("rivers", "rovers", 1))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def edit_held() -> None:
    Path("held.txt").write_text(TEXT[-1600:])


def add_file() -> None:
    Path("texts/more.txt").write_text(TEXT[9000:9500])


def remove_file() -> None:
    Path("texts/2.txt").unlink()


def swap_held_and_train() -> None:
    held, train = Path("held.txt").read_text(), Path("texts/0.txt").read_text()
    Path("held.txt").write_text(train)
    Path("texts/0.txt").write_text(held)


def edit_recipe() -> None:
    file = Path("recipe.yaml")
    file.write_text(file.read_text().replace("steps: 2", "steps: 3"))


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (edit_data, "data.train: 1.txt was "),
        (edit_in_place_with_the_old_time, "data.train: 1.txt was "),
        (edit_held, "data.held: held.txt was "),
        (add_file, "data.train: more.txt is new"),
        (remove_file, "data.train: 2.txt is gone"),
        (swap_held_and_train, "data.held: held.txt was "),
        (edit_recipe, "steps: 2 → 3"),
    ],
)
def test_a_changed_recipe_or_file_is_a_run_of_its_own(home: Registry, edit: Any, told: str) -> None:
    default, half, whole = meant(home), Path("half"), Path("whole")
    begin(home, meant(home, run_dir=half))
    finish(home, meant(home, run_dir=whole))
    begin(home, default)
    edit()
    assert meant(home).folder != default.folder
    for folder, refused in ((half, begin), (whole, already_registered)):
        with pytest.raises(Conflict) as caught:
            refused(home, meant(home, run_dir=folder))
        assert told in caught.value.message and "--run-dir" in caught.value.message


def move_folder() -> None:
    Path("texts").rename("elsewhere")
    file = Path("recipe.yaml")
    file.write_text(file.read_text().replace("texts", "elsewhere"))


def name_the_files() -> None:
    file = Path("recipe.yaml")
    said = yaml.safe_load(file.read_text())
    said["data"]["train"] = [f"texts/{part}.txt" for part in range(3)]
    file.write_text(yaml.safe_dump(said))


def touch() -> None:
    for file in Path("texts").iterdir():
        os.utime(file, (1, 1))


def comment_on_the_recipe() -> None:
    file = Path("recipe.yaml")
    file.write_text("# thought over\n" + file.read_text())


def move_recipe_and_all() -> None:
    folder = Path("moved")
    folder.mkdir()
    for name in ("texts", "held.txt", "recipe.yaml"):
        shutil.move(name, folder / name)
    os.chdir(folder)


@pytest.mark.parametrize(
    "edit", [move_folder, name_the_files, touch, comment_on_the_recipe, move_recipe_and_all]
)
def test_the_same_contents_elsewhere_are_the_same_run(home: Registry, edit: Any) -> None:
    finished, begun = meant(home), meant(home, "seed=1")
    made = finish(home, finished)
    begin(home, begun)
    edit()
    assert already_registered(home, meant(home)) == made
    again = meant(home, "seed=1")
    assert again.folder == begun.folder
    begin(home, again)


def test_stores_are_told_apart_by_what_they_hold(stores: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(stores / "train", tmp_path / "copy")

    def contents(store: Path) -> list[str]:
        recipe = TrainRecipe.model_validate({"data": {"store": store}})
        return [sha256 for _, sha256 in contents_of(recipe)["data.store"]]

    assert contents(tmp_path / "copy") == contents(stores / "train")
    store = open_store(stores / "train")
    write_store(
        tmp_path / "fewer",
        [store[at] for at in range(20)],
        tokenizer_sha256=store.card.tokenizer_sha256,
        vocab_size=store.card.vocab_size,
    )
    assert contents(tmp_path / "fewer") != contents(stores / "train")
    with (tmp_path / "copy" / "tokens.bin").open("r+b") as file:
        file.write(b"\7\7")
    with pytest.raises(Corrupt, match=r"tokens\.bin"):
        contents(tmp_path / "copy")


@pytest.mark.parametrize("run_dir", [None, Path("chosen")])
def test_a_run_goes_on_with_the_base_that_it_began_with(
    home: Registry, base: Path, run_dir: Path | None
) -> None:
    run = meant(home, run_dir=run_dir)
    assert run.says == "base tiny → tiny@1"
    begin(home, run)
    promoted(home, base)
    again = meant(home, run_dir=run_dir)
    assert (again.folder, again.base) == (run.folder, run.base)
    assert again.says.startswith("base tiny → tiny@1, as when this run began; tiny is tiny@2 by now")
    begin(home, again)
    by_number = meant(home, "base=tiny@1", run_dir=run_dir)
    assert by_number.folder == run.folder
    begin(home, by_number)
    assert meant(home, run_dir=run_dir).base == run.base, "and by its name as before"


def test_another_base_is_refused_with_a_way_out(home: Registry, base: Path) -> None:
    begin(home, meant(home, run_dir=Path("chosen")))
    promoted(home, base)
    with pytest.raises(Conflict) as caught:
        begin(home, meant(home, "base=tiny@2", run_dir=Path("chosen")))
    message = caught.value.message
    assert "base: tiny@1 (" in message and "→ tiny@2 (" in message
    assert "--set base=tiny@1 names its base" in message and "--run-dir" in message
    begin(home, meant(home, "base=tiny@1", run_dir=Path("chosen")))


def test_a_finished_run_is_no_base_of_its_own(home: Registry, base: Path) -> None:
    made = finish(home, meant(home))
    home.promote(made.ref)
    assert already_registered(home, meant(home)) == made
    promoted(home, base)
    fresh = meant(home)
    assert fresh.base and fresh.base.ref == "tiny@3"
    assert already_registered(home, fresh) is None


def test_a_base_that_is_gone_is_told(home: Registry, base: Path) -> None:
    run = meant(home)
    begin(home, run)
    promoted(home, base)
    home.delete("tiny@1")
    with pytest.raises(Conflict, match=r"begun with tiny@1, which is no longer here: remove the folder"):
        meant(home)
    shutil.rmtree(run.folder)
    assert meant(home).says == "base tiny → tiny@2"


def test_a_run_is_registered_once_though_killed_before_it_could_say_so(home: Registry) -> None:
    run = meant(home)
    begin(home, run)
    assert run.base
    model = run.folder / "model"
    for _ in range(2):
        shutil.copytree(home.path(run.base), model, ignore=shutil.ignore_patterns("bundle.json"))
        made = register(home, run, Outcome(model, {"steps": 2}, {"base": "tiny@1"}))
        (run.folder / "registered.json").unlink()
    assert made.ref == "tiny@2" and len(home.versions("tiny")) == 2


def test_a_finished_run_that_was_deleted_begins_anew(home: Registry) -> None:
    run = meant(home)
    home.delete(finish(home, run).ref)
    with claimed(run.folder):
        assert already_registered(home, meant(home)) is None
        assert not (run.folder / "run.json").exists()
    with pytest.raises(NotFound):
        home.resolve("tiny@2")


HOLD = """
import sys, time
from pathlib import Path
from train.runs.claim import claimed, claimed_by_rank
folder, rank = Path(sys.argv[1]), sys.argv[2]
with claimed(folder) if rank == "command" else claimed_by_rank(folder, int(rank)):
    print("held", flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("theirs", ["model/weights.safetensors", "data/chat.jsonl", "notes.txt", ".git/HEAD"])
def test_a_folder_with_other_things_is_no_run_folder(home: Registry, theirs: str) -> None:
    """A run writes and removes what is called model, data and so on."""
    folder = Path("mine")
    file = folder / theirs
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(Conflict, match=r"mine holds other things than a run \("):
        begin(home, meant(home, run_dir=folder))
    assert file.read_text() == "mine"


def test_leftovers_of_a_run_killed_before_it_began_are_no_hindrance(home: Registry) -> None:
    folder = Path("chosen")
    folder.mkdir()
    (folder / ".run.json.k1lled").write_text("{")
    begin(home, meant(home, run_dir=folder))
    assert (folder / "run.json").is_file()


def test_beginning_anew_removes_nothing_but_what_the_run_made(home: Registry) -> None:
    run = meant(home, run_dir=Path("chosen"))
    version = finish(home, run)
    (run.folder / "notes.txt").write_text("mine")
    home.delete(version.ref)
    assert already_registered(home, run) is None
    assert [one.name for one in run.folder.iterdir() if one.suffix != ".lock"] == ["notes.txt"]


@pytest.mark.parametrize("folder", ["texts", "texts/run"])
def test_a_run_folder_within_the_data_is_refused(home: Registry, folder: str) -> None:
    with pytest.raises(
        Conflict, match=f"the run folder {folder} lies within the data folder .*texts: choose"
    ):
        meant(home, run_dir=Path(folder))
    assert not Path("texts/run").exists()


def test_a_suffix_that_reads_a_file_another_way_is_another_run(home: Registry) -> None:
    first = meant(home, "data.train=texts/0.txt")
    begin(home, first)
    Path("texts/0.txt").rename("texts/0.jsonl")
    assert meant(home, "data.train=texts/0.jsonl").folder != first.folder
    with pytest.raises(Conflict, match=r"0\.txt is gone"):
        begin(home, meant(home, "data.train=texts/0.jsonl", run_dir=first.folder))


@pytest.mark.parametrize("content", ["[]", '"run"', "", "{"])
@pytest.mark.parametrize("name", ["run.json", "registered.json"])
def test_a_file_of_the_run_that_is_damaged_is_told(home: Registry, name: str, content: str) -> None:
    run = meant(home, run_dir=Path("chosen"))
    finish(home, run)
    (run.folder / name).write_text(content)
    with pytest.raises(Corrupt, match=f"{name} is not what was written .* remove chosen"):
        already_registered(home, run)
    meant(home)  # another run is not its concern


def test_a_run_of_before_its_files_were_written_down_says_so(home: Registry) -> None:
    run = meant(home, run_dir=Path("chosen"))
    begin(home, run)
    said = json.loads((run.folder / "run.json").read_bytes())
    (run.folder / "run.json").write_text(
        json.dumps({key: value for key, value in said.items() if key not in ("contents", "base")})
    )
    with pytest.raises(Conflict, match="holds a run of an earlier version"):
        begin(home, run)


def test_a_home_of_nobody_is_told(home: Registry) -> None:
    with pytest.raises(ConfigError, match="~nobody-of-that-name/x: there is no such user's folder"):
        read_recipe(Path("recipe.yaml"), ["data.train=~nobody-of-that-name/x"])


def holder(folder: Path, what: str) -> subprocess.Popen[str]:
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), what],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("run_dir", [None, "chosen"])
def test_a_second_command_is_refused_until_the_first_is_killed(home: Registry, run_dir: str | None) -> None:
    run = meant(home, run_dir=Path(run_dir) if run_dir else None)
    command = ["train", "recipe.yaml", *(["--run-dir", run_dir] if run_dir else [])]
    first = holder(run.folder, "command")
    try:
        said = CliRunner().invoke(app, command)
        assert said.exit_code == 1
        assert f"another process is training in {run.folder}" in said.output.replace("\n", "")
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with claimed(run.folder, wait_s=0):
        pass


def test_a_new_run_waits_for_every_rank_of_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.runs.claim.WAIT_S", 0.2)
    last = holder(tmp_path, "3")
    try:
        with pytest.raises(Conflict, match="another process is training"):
            wait_for_ranks(tmp_path)
        with claimed_by_rank(tmp_path, 0):
            pass
    finally:
        last.kill()
        last.wait()
    wait_for_ranks(tmp_path)


def test_two_commands_at_once_make_one_model(home: Registry) -> None:
    command = [sys.executable, "-m", "everlearn", "train", "recipe.yaml", "--json"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    said = [(*process.communicate(timeout=200), process.returncode) for process in both]
    made = [json.loads(out)["ref"] for out, _, code in said if code == 0]
    refused = [err for _, err, code in said if code != 0]
    assert made and set(made) == {"tiny@2"}
    assert all("another process is training" in err for err in refused)
    assert len(home.versions("tiny")) == 2
    assert home.resolve("tiny@2").manifest.recipe["train"]["base"] == "tiny@1"
    Path("texts/1.txt").write_text(TEXT[1000:4000])
    said = CliRunner().invoke(app, ["train", "recipe.yaml", "--set", "base=tiny@1"])
    assert said.exit_code == 0 and "tiny@3" in said.output, said.output
    assert "finished" not in said.output
