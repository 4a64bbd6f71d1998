"""Compression recipes: files that people write, and bundles that older releases made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from compress.distill.recipe import read_distill_recipe
from compress.quantize.calibration import calibration_windows
from compress.recipe import Calibration, CompressRecipe, read_plan, recipe_from
from everlearn.errors import ConfigError, InvalidInput, NotFound
from tests.support.tiny_models import train_tokenizer
from train.data.store import Example, write_store
from train.evaluate.held_out_text import HELD_OUT_TOKENS, held_out_text


def plan(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    return file


def test_one_calibration_set_serves_every_target(tmp_path: Path) -> None:
    text = "calibration: {text: own.txt, tokens: 4096}\ntargets:\n  - {to: int4-onnx, weights: gptq}\n  - {to: w8a8}\n"
    recipes = read_plan(plan(tmp_path, text)).recipes()
    assert [(one.to, one.weights) for one in recipes] == [("int4-onnx", "gptq"), ("w8a8", "rtn")]
    assert {one.calibration for one in recipes} == {Calibration(text=tmp_path / "own.txt", tokens=4096)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "targets: [{to: int4-onnx}]\ncalibration: {tokns: 4096}\n",
            r"plan.yaml:2: .*'calibration.tokns'.*tokens",
        ),
        ("targets:\n  - {to: int3-onnx}\n", "int4-onnx"),
        ("targets: [{to: int8-onnx, weights: gptq}]\n", "gptq makes int4-onnx"),
        (
            "targets:\n  - {to: w4a16, high_precision_fraction: 0.1}\n",
            "high_precision_fraction is for int4-onnx and w8a8",
        ),
        ("targets:\n  - {to: w8a8, kv_cache: int8}\n", "kv_cache: int8 is for int4-onnx and int8-onnx"),
        ("targets:\n  - {to: w8a8, high_precision_fraction: 1}\n", "nothing to round"),
        ("targets: []\n", "targets"),
        ("calibration: {text: a, store: b}\ntargets: [{}]\n", "not both"),
    ],
)
def test_a_wrong_plan_is_told_where_and_what_would_be_right(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_plan(plan(tmp_path, text))


def test_bundles_of_the_first_release_are_understood() -> None:
    export = {
        "to": "int4-onnx",
        "precision": "int4",
        "options": ["block_size=32"],
        "builder": "onnxruntime-genai 0.18.0",
    }
    assert recipe_from(export) == CompressRecipe(to="int4-onnx", weights="rtn", head_bits=4)
    assert (
        recipe_from({"to": "w8a8"}).high_precision_fraction,
        CompressRecipe(to="w8a8").high_precision_fraction,
    ) == (0, 0.25)


def test_gptq_is_for_int4_alone() -> None:
    with pytest.raises(ValidationError, match="gptq makes int4-onnx"):
        CompressRecipe(to="w8a8", weights="gptq")


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    train_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("sequence_tokens", [512, 100])
def test_the_default_calibration_text_is_not_the_measured_one(
    tokenizer_file: Path, sequence_tokens: int
) -> None:
    rows = calibration_windows(Calibration(tokens=2000, sequence_tokens=sequence_tokens), tokenizer_file)
    ids = train_tokenizer().encode(held_out_text().text).ids
    first = -(-HELD_OUT_TOKENS // sequence_tokens) * sequence_tokens
    assert first >= HELD_OUT_TOKENS
    assert rows.ravel().tolist() == ids[first : first + rows.size]
    assert rows.shape == (2000 // sequence_tokens, sequence_tokens)


def test_a_store_is_sampled_by_its_seed(tokenizer_file: Path, tmp_path: Path) -> None:
    documents = [np.full(40, number, dtype=np.int32) for number in range(1, 60)]
    examples = [Example(ids, np.ones(40, dtype=np.bool_)) for ids in documents]
    write_store(tmp_path / "store", examples, tokenizer_sha256="0" * 64, vocab_size=512)
    chosen = Calibration(store=tmp_path / "store", tokens=256, sequence_tokens=64)
    rows = calibration_windows(chosen, tokenizer_file)
    assert rows.shape == (4, 64)
    assert np.array_equal(rows, calibration_windows(chosen, tokenizer_file))
    assert not np.array_equal(
        rows, calibration_windows(chosen.model_copy(update={"seed": 1}), tokenizer_file)
    )


def test_a_calibration_source_that_cannot_serve_is_named(tokenizer_file: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.txt"):
        calibration_windows(Calibration(text=tmp_path / "none.txt"), tokenizer_file)
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(InvalidInput, match="at least 512"):
        calibration_windows(Calibration(text=tmp_path / "short.txt"), tokenizer_file)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidInput, match=r"latin\.txt is not UTF-8"):
        calibration_windows(Calibration(text=tmp_path / "latin.txt"), tokenizer_file)


def test_a_distillation_recipe_names_one_kind_of_student(tmp_path: Path) -> None:
    base = "name: small\nteacher: smollm2\ndata: {train: [a.txt]}\n"
    recipe = read_distill_recipe(plan(tmp_path, base + "student: {layers: 12}\n"))
    assert recipe.data.train == (tmp_path / "a.txt",)
    with pytest.raises(ConfigError, match="say one of layers"):
        read_distill_recipe(plan(tmp_path, base + "student: {}\n"))
    with pytest.raises(ConfigError, match=r"plan.yaml:4: .*'student.layer'.*student.layers"):
        read_distill_recipe(plan(tmp_path, base + "student: {layer: 12}\n"))
