"""Every architecture of docs/supported-architectures.md: its graph is torch's model, the engine runs it, and the page says so."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import PreTrainedConfig

from compress.measure.parity import KERNELS, SAME_GRAPH, mean_divergence
from compress.targets.architectures import GGUF, ONNX_DECODERS, VLLM
from tests.compress.targets import architecture_table as table
from tests.support.architecture_rows import FAMILIES, working, write
from train.evaluate.held_out_text import held_out_text, token_windows
from train.evaluate.logits import torch_logits
from train.models.load import load_causal_lm

ROWS = {row.name: row for row in working()}
UPDATE = "run python -m tests.compress.targets.architecture_table"


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_works_is_torchs_model_in_float32_and_as_it_is_served(name: str, tmp_path: Path) -> None:
    row, model_dir, made = ROWS[name], tmp_path / "model", tmp_path / "made"
    write(row.config, model_dir)
    found = table.build_and_measure(model_dir, made)
    assert found["graph"] < SAME_GRAPH
    assert table.served(model_dir, made) < SAME_GRAPH
    (written,) = table.figures([one for one in table.written() if table.is_of(one, name)]) or [1.0]
    assert abs(written - max(0.0, found["graph"])) < 1e-5, UPDATE


def test_the_page_is_what_was_measured() -> None:
    expected = [*table.lines(lambda row: 0.0)]
    assert table.without_figures(table.written()) == table.without_figures(expected), UPDATE
    figures = table.figures(table.written())
    assert len(figures) == len(ROWS) >= 30 and max(figures) < 0.01


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.plain is not None])
def test_the_change_that_a_variant_makes_shows_in_its_row(name: str, tmp_path: Path) -> None:
    """A graph that left it out would be off by this much: the row could not pass."""
    row = ROWS[name]
    assert row.plain is not None
    write(row.config, tmp_path / "model")
    write(row.plain, tmp_path / "plain")
    window = token_windows(tmp_path / "model" / "tokenizer.json", held_out_text().text, 256, 256)
    one, other = (torch_logits(load_causal_lm(tmp_path / each), window) for each in ("model", "plain"))
    assert mean_divergence(one, other, window) > 0.1


@pytest.mark.parametrize("name", table.REFUSED)
def test_a_refused_architecture_says_why(name: str) -> None:
    assert table.reason(name)


def test_every_known_architecture_has_a_row() -> None:
    assert {row.architecture for row in ROWS.values()} == ONNX_DECODERS
    assert set(GGUF) <= ONNX_DECODERS | {name.partition(",")[0] for name in table.REFUSED}


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here")
def test_vllm_serves_what_the_table_says() -> None:
    assert table.vllms() >= VLLM
    known = {row.architecture for row in ROWS.values()} | {name.partition(",")[0] for name in table.REFUSED}
    assert known & table.vllms() <= VLLM


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_is_quantized_layer_by_layer(kind: type[PreTrainedConfig], tmp_path: Path) -> None:
    """Torch with the same rounded weights gives the same predictions, so no matrix stands in another's place."""
    write(kind(**FAMILIES[kind]), tmp_path / "model")
    found = table.build_and_measure(tmp_path / "model", tmp_path / "made", "int8-onnx")
    assert found["graph"] < SAME_GRAPH and 0 < found["kernels"] < KERNELS
