"""A recipe's faults are told with their place and what would be right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everlearn.errors import ConfigError
from train.data.cleaning.options import FILE_KEYS
from train.data.options import FIRST_OPTIONS, DataOptions
from train.recipe import TrainRecipe, deciding, read_recipe, recipe_diff, recipe_keys, validate_recipe
from train.runs.identity import contents_of_data, contents_read

GOOD = """\
name: tiny
base: smollm2
data:
  train: [texts.jsonl]
tune: lora
optimizer:
  lr: 0.001
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def test_a_recipe_is_read_with_its_defaults_and_paths_beside_it(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD))
    assert recipe.data.train == (tmp_path / "texts.jsonl",)
    assert (recipe.tune.method, recipe.tune.rank, recipe.optimizer.lr) == ("lora", 16, 0.001)
    assert (recipe.schedule.final_fraction, recipe.rows) == (0.1, 16)


def test_set_overrides_a_key_at_any_depth(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD), ["optimizer.lr=2e-4", "tune.rank=4", "steps=7", "seed=3"])
    assert (recipe.optimizer.lr, recipe.tune.method, recipe.tune.rank) == (2e-4, "lora", 4)
    assert (recipe.steps, recipe.seed) == (7, 3)


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ("  lr: 0.001", "  learning_rat: 1", "recipe.yaml:7: unknown recipe key 'optimizer.learning_rat'"),
        ("  lr: 0.001", "  weight_decai: 1", "did you mean 'optimizer.weight_decay'?"),
        (
            "name: tiny",
            "sequence_token: 9",
            "recipe.yaml:1: unknown recipe key 'sequence_token'; did you mean",
        ),
        ("tune: lora", "tune: {methd: lora}", "did you mean 'tune.method'?"),
        ("  lr: 0.001", "  lr: fast", "recipe.yaml:7: optimizer.lr: Input should be a valid number"),
        ("  lr: 0.001", "  lr: -1", "optimizer.lr: Input should be greater than 0 (got -1)"),
        ("tune: lora", "tune: lorra", "'full' or 'lora' (got 'lorra')"),
        ("name: tiny", "ranks: 2", "say how they share the work, parallel: ddp or fsdp2"),
        ("name: tiny", "batch_tokens: 1000", "must be a multiple of sequence_tokens (512); 1024 would do"),
        ("  train: [texts.jsonl]", "  kind: chat", "data: give either train"),
        ("data:\n  train: [texts.jsonl]\n", "", "nothing about 'data'"),
        (
            "base: smollm2",
            "architecture: {layers: 2, hidden: 30, heads: 4}",
            "must be a multiple of heads (4)",
        ),
    ],
)
def test_a_fault_names_its_place_and_what_would_be_right(
    tmp_path: Path, wrong: str, right: str, message: str
) -> None:
    file = write(tmp_path, GOOD.replace(wrong, right))
    with pytest.raises(ConfigError) as caught:
        read_recipe(file)
    assert message in caught.value.message


def test_every_field_is_a_known_key() -> None:
    keys = set(recipe_keys(TrainRecipe))
    assert {"tune.rank", "checkpoint.every_steps", "architecture.kv_heads", "data.held_fraction"} <= keys


def test_keys_that_do_not_change_the_result_are_no_difference() -> None:
    one = validate_recipe(TrainRecipe, {"data": {"store": "a"}}).model_dump(mode="json")
    other = validate_recipe(
        TrainRecipe,
        {
            "data": {"store": "a"},
            "ranks": 4,
            "parallel": "fsdp2",
            "micro_batch": 1,
            "checkpoint": {"keep": 1},
            "seed": 1,
        },
    ).model_dump(mode="json")
    assert recipe_diff(one, other) == ["seed: 0 → 1"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=fast", "--set optimizer.lr: Input should be a valid number"),
        ("optimizer.lr=.nan", "--set optimizer.lr: Input should be a finite number (got nan)"),
        ("optimizer.lr=inf", "finite number"),
        ("optimizer.betas=[0.9, 1.5]", "--set optimizer.betas: Input should be less than 1 (got 1.5)"),
        ("optimizer={lr: -1}", "--set optimizer: optimizer.lr: Input should be greater than 0 (got -1)"),
        ("epochs=.inf", "--set epochs: Input should be a finite number"),
        ("steps=100000000000", "--set steps: Input should be less than or equal to 1000000000"),
        ("optimizer.lr=[", "--set optimizer.lr: '[' is not a YAML value: expected the node content"),
        ("optimizer.lr", "--set takes key=value, as in optimizer.lr=0.0003, not 'optimizer.lr'"),
        ("optimizer..lr=1", "--set takes key=value"),
        ("=1", "--set takes key=value"),
        ("optimizer.lr.x=1", "--set optimizer.lr.x: lr is 0.001, with no keys below it"),
        ("optimizer.rate=1", "--set optimizer.rate: unknown recipe key 'optimizer.rate'"),
        (
            "objective=causal",
            "--set objective: known objectives are causal-lm, masked-lm, span-corruption, seq2seq, keep, ",
        ),
        ("schedule.decay=cosine", "unknown recipe key 'schedule.decay'"),
        ("data.train=7", "--set data.train: Input should be a valid list (got 7)"),
        ("tune.rank=0", "--set tune.rank: Input should be greater than or equal to 1 (got 0)"),
    ],
)
def test_a_fault_of_an_override_is_told_as_the_overrides(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe(write(tmp_path, GOOD), [override])
    assert message in caught.value.message
    assert "recipe.yaml" not in caught.value.message and "\n" not in caught.value.message


def test_one_file_or_target_may_stand_without_a_list(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD), ["data.train=other.txt", "tune.targets=q_proj"])
    assert recipe.data.train == (tmp_path / "other.txt",)
    assert recipe.tune.targets == ("q_proj",)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.sampled_from([".nan", "lora", "ddp", "texts.jsonl", "1e400", "-0.0", "all-linear"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)
KEYS = st.sampled_from([*recipe_keys(TrainRecipe), "x", "optimizer.lr.x", "", "tune.method.rank"])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.lists(st.tuples(KEYS, VALUES), max_size=2))
def test_any_values_are_a_recipe_of_finite_numbers_or_one_clear_error(
    tmp_path: Path, values: dict, overrides: list
) -> None:
    said: dict = yaml.safe_load(GOOD)
    for key, value in values.items():
        *path, last = key.split(".")
        inner = said
        for part in path:
            inner[part] = inner[part] if isinstance(inner.get(part), dict) else {}
            inner = inner[part]
        inner[last] = value
    file = write(tmp_path, yaml.safe_dump(said, allow_unicode=True))
    sets = [f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}" for key, value in overrides]
    try:
        recipe = read_recipe(file, sets)
    except ConfigError as error:
        assert error.message and "Traceback" not in error.message
        return
    assert not re.search(r"\b(NaN|Infinity)\b", str(recipe.model_dump_json(exclude={"name", "base"})))
    again = validate_recipe(TrainRecipe, recipe.model_dump(mode="json"))
    assert recipe_diff(again.model_dump(mode="json"), recipe.model_dump(mode="json")) == []


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_is_a_recipe_or_one_clear_error(tmp_path: Path, text: str | bytes) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError):
        read_recipe(file)


def test_every_key_is_read_somewhere() -> None:
    """A key that decides nothing is a promise that nobody keeps."""
    room = Path(__file__).resolve().parents[2] / "train"
    sources = "\n".join(file.read_text() for file in sorted(room.rglob("*.py")))
    models = "".join(
        (room / name).read_text() for name in ("recipe.py", "recipe_data.py", "models/architecture.py")
    )
    parts = [
        key
        for key in recipe_keys(TrainRecipe)
        if any(k.startswith(f"{key}.") for k in recipe_keys(TrainRecipe))
    ]
    holders = "|".join({"recipe", "options", "self.options", "settings", "chosen", *parts})

    def is_read(key: str) -> bool:
        if key.startswith("data.") and key.rpartition(".")[2] in DataOptions.model_fields:
            return True  # handed on whole
        if key in {f"data.{group}.{each}" for group, keys in FILE_KEYS.items() for each in keys}:
            return True  # read by given_files
        if key.startswith("data.mixture.<name>."):
            return True  # read by Data.files and Data.stages
        last = key.rpartition(".")[2]
        own = re.search(rf"self\.{last}\b", models)
        return bool(own or re.search(rf"\b({holders})\.{last}\b", sources))

    unread = [key for key in recipe_keys(TrainRecipe) if not is_read(key)]
    assert unread == []


def test_options_of_data_that_are_not_used_leave_an_old_run_as_it_was(tmp_path: Path) -> None:
    """A run's folder is named by what decides: a key more would lose every run begun before there was the key."""
    said = deciding(read_recipe(write(tmp_path, GOOD)).model_dump(mode="json"))
    assert {key for key in said if key.startswith("data.")} == {f"data.{key}" for key in FIRST_OPTIONS}
    masked = deciding(read_recipe(write(tmp_path, GOOD), ["data.personal=true"]).model_dump(mode="json"))
    assert masked["data.personal.consistent"] is False


def test_lists_lie_beside_the_recipe_and_decide_by_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Some text that is long enough."}\n')
    (tmp_path / "words.txt").write_text("bad\n")
    file = write(tmp_path, "base: tiny\ndata: {train: a.jsonl, harmful: {words: words.txt}}\n")
    before = read_recipe(file)
    assert before.data.given_files()["harmful.words"] == (tmp_path / "words.txt",)
    contents = contents_of_data(before.data)
    (tmp_path / "words.txt").rename(tmp_path / "other.txt")
    moved = read_recipe(file, ["data.harmful.words=[other.txt]"])
    assert recipe_diff(before.model_dump(mode="json"), moved.model_dump(mode="json")) == []
    assert contents_read(contents_of_data(moved.data)) == contents_read(contents)
    (tmp_path / "other.txt").write_text("worse\n")
    assert contents_read(contents_of_data(moved.data)) != contents_read(contents)
    assert "data.harmful.words" in contents
