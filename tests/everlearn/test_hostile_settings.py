"""Settings and recipes may say anything: they are taken, or one error names what is wrong. Never a traceback."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everlearn.errors import ConfigError
from everlearn.settings import load_settings
from train.recipe import read_recipe

many = settings(
    max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

WORDS = [
    "serve",
    "port",
    "home",
    "continual",
    "lease_s",
    "onnx",
    "base",
    "data",
    "train",
    "optimizer",
    "lr",
    "x",
]
PIECES = st.sampled_from(
    [*WORDS, ": ", "\n", "\n  ", "- ", "{", "}", "[", "]", ",", "&a ", "*a", "<<: ", "!!python/object:os.system ", "? ",
     "'", '"', "|", ">", "#", "1", "-1", "1e999", ".nan", "0x", "2001-99-99", "9" * 5000, "true", "~", "\t", "\x07", "\ud7ff", "---\n"]
)  # fmt: skip
SAID: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(
        [None, True, 7, -1, 2**70, 1.5, float("inf"), "", "x", "8000", "~", "a\0b", "http://x", [], {}]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=10,
)
FILES = st.lists(PIECES, max_size=20).map("".join).map(str.encode) | SAID.map(lambda said: yaml.safe_dump(said).encode()) | st.binary(max_size=60)  # fmt: skip

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@many
@given(content=FILES)
def test_a_settings_file_may_say_anything(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "everlearn.yaml").write_bytes(content)
    try:
        load_settings()
    except ConfigError as error:
        assert error.message


@many
@given(content=FILES)
def test_a_recipe_may_say_anything(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    try:
        read_recipe(tmp_path / "recipe.yaml")
    except ConfigError as error:
        assert error.message


@many
@given(
    key=st.sampled_from(["base", "data.train", "optimizer.lr", "epochs", "", "a.b.c.d", "."]),
    value=st.lists(PIECES, max_size=8).map("".join),
)
def test_a_value_set_beside_a_recipe_may_be_anything(tmp_path: Path, key: str, value: str) -> None:
    (tmp_path / "recipe.yaml").write_text("base: x\ndata: {train: [a.jsonl]}\n")
    try:
        read_recipe(tmp_path / "recipe.yaml", [f"{key}={value}"])
    except ConfigError as error:
        assert error.message


NAMES = ["EVERLEARN_SERVE", "EVERLEARN_SERVE__PORT", "EVERLEARN_SERVE__REMOTES", "EVERLEARN_HOME", "DATABASE_URL",
         "EVERLEARN_CONTINUAL__LEASE_S", "EVERLEARN_ONNX", "EVERLEARN_LOG_LEVEL", "EVERLEARN_SERVE__PORT__X"]  # fmt: skip


@many
@given(name=st.sampled_from(NAMES), value=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30) | st.sampled_from(["{", "[1", "null", "[]", '{"port": []}', "9" * 5000, "[" * 5000, "{}"]))  # fmt: skip
def test_a_variable_may_be_anything(name: str, value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        try:
            load_settings()
        except ConfigError as error:
            assert error.message


@pytest.mark.parametrize(
    "content", [BOMB, "serve: &a {port: *a}\n", BOMB + "serve: {port: *a39}\n", "x: " + "[" * 5000]
)
def test_aliases_that_stand_for_without_end_are_refused_at_once(tmp_path: Path, content: str) -> None:
    (tmp_path / "everlearn.yaml").write_text(content)
    start_s = time.process_time()
    with pytest.raises(ConfigError, match=r"everlearn\.yaml"):
        load_settings()
    assert time.process_time() - start_s < 5
