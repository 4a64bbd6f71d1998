"""What a configuration leaves to its model type is what transformers makes of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GemmaConfig

from compress.search import DecoderSizes
from everlearn.bundles.decoder_config import BY_LAYER, IN_ALL_LAYERS, is_tied
from tests.compress.targets.architecture_table import build_and_measure
from tests.support.architecture_rows import SHAPE, working, write

TYPES = sorted({row.config.model_type for row in working()})


@pytest.mark.parametrize("kind", TYPES)
def test_tying_is_the_default_of_the_type_where_the_file_says_nothing(kind: str) -> None:
    default = bool(CONFIG_MAPPING[kind]().tie_word_embeddings)
    assert is_tied({"model_type": kind}) is default
    assert is_tied({"model_type": kind, "tie_word_embeddings": not default}) is not default


@pytest.mark.parametrize("kind", TYPES)
def test_types_with_windows_are_those_whose_code_has_them(kind: str) -> None:
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SHAPE | {"num_hidden_layers": 1}))
    code = Path(str(__import__(type(model).__module__, fromlist=["x"]).__file__)).read_text()
    assert ("create_sliding_window_causal_mask" in code) is (kind in BY_LAYER | IN_ALL_LAYERS)
    assert bool(re.search(r"layer_types\[", code)) is (kind in BY_LAYER)


def test_gemma_as_published_is_tied(tmp_path: Path) -> None:
    write(GemmaConfig(**SHAPE), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config.pop("tie_word_embeddings", None)
    file.write_text(json.dumps(config))
    assert DecoderSizes.read(tmp_path / "model").tied
    build_and_measure(tmp_path / "model", tmp_path / "made", "int8-onnx")
    graph = onnx.load(tmp_path / "made" / "model.onnx", load_external_data=False).graph
    assert [node.op_type for node in graph.node if node.op_type.startswith("Gather")].count(
        "GatherBlockQuantized"
    ) == 1
