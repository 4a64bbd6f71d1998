"""The tables of targets and methods: what reads them agrees with them, and a new method is one file and one line."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from pydantic import ValidationError
from typer.testing import CliRunner

from compress.cli import commands
from compress.export import export, recipe_of
from compress.plan import find_export
from compress.quantize.blocks import round_to_nearest
from compress.quantize.methods import METHODS, Method, methods_for
from compress.recipe import CompressRecipe
from compress.targets.table import FOR_VLLM, GGUF_TYPES, TARGETS
from everlearn.errors import InvalidInput
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.compress import tables

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.mark.parametrize("name", tables.TABLES)
def test_the_docs_have_the_table_as_the_code_has_it(name: str) -> None:
    assert tables.written(name) == tables.TABLES[name](), "run python -m tests.compress.tables"


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_module_has_a_function_for_each_kind_of_target_it_rounds(name: str) -> None:
    module = importlib.import_module(METHODS[name].module)
    for target in METHODS[name].targets:
        assert callable(getattr(module, "modifiers" if target in FOR_VLLM else "quantize_model")), target


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("weights", METHODS)
def test_a_recipe_takes_exactly_the_pairs_of_target_and_method_in_the_table(to: str, weights: str) -> None:
    if weights in methods_for(to):
        assert CompressRecipe(to=to, weights=weights).weights == weights
    else:
        with pytest.raises(ValidationError, match=f"weights: {weights} makes .*, not {to}"):
            CompressRecipe(to=to, weights=weights)


@pytest.mark.parametrize(("command", "option", "names"), [
    ("compress", "--to", list(TARGETS)), ("compress", "--weights", list(METHODS)), ("gguf", "--type", list(GGUF_TYPES)),
])  # fmt: skip
def test_the_command_line_offers_the_names_in_the_table(command: str, option: str, names: list[str]) -> None:
    said = CliRunner().invoke(commands, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    offered = re.search(rf"{option}\s+\W*([\w|-]+)", said)
    assert offered and offered[1].split("|") == names


def blocks_of_example() -> tuple[str, str]:
    """The file and the line of CONTRIBUTING's section on a quantization method."""
    section = CONTRIBUTING.read_text().partition("### A quantization method")[2].partition("\n## ")[0]
    file, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return file, line


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """CONTRIBUTING's method, its file on the path of this process and of its children, its line in the table."""
    file, line = blocks_of_example()
    ((name, method),) = eval(f"{{{line}}}", {"Method": Method}).items()
    folder, _, module = method.module.rpartition(".")
    assert folder == "compress.quantize"
    (tmp_path / f"{module}.py").write_text(file)
    monkeypatch.syspath_prepend(tmp_path)
    here = Method(module, method.targets, method.description, method.calibrated)
    monkeypatch.setitem(METHODS, name, here)
    return name


def test_the_documented_method_goes_through_the_export_and_its_gate(
    documented: str, tiny_settings: Settings, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = CompressRecipe(to="int4-onnx", weights=documented)
    version = export(tiny_settings, "tiny@1", recipe)
    assert version.manifest.recipe["export"]["weights"] == documented
    assert version.manifest.metrics["same_weights"]["graph"] < 1e-5
    weight = parent_weight(parent, "model.layers.0.mlp.down_proj.weight")
    made = scales(Registry(tiny_settings).path(version), "model.layers.0.mlp.down_proj")
    plain = round_to_nearest(weight).scales.numpy()
    assert made.shape == plain.shape and not np.array_equal(made, plain), "these are the scales of rtn"

    monkeypatch.delitem(METHODS, documented)  # as where the package that brought it is not installed
    registry = Registry(tiny_settings)
    assert find_export(registry, registry.resolve("tiny@1"), recipe, {}) is None
    with pytest.raises(InvalidInput, match=rf"{version.ref} was made by a recipe .* weights: .*'rtn'"):
        recipe_of(version)


def parent_weight(model_dir: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(model_dir / "model.safetensors", "pt") as tensors:
        return tensors.get_tensor(name).float()


def scales(directory: Path, layer: str) -> np.ndarray[Any, Any]:
    """Those that the graph multiplies ``layer``'s codes with: float32 (out, blocks)."""
    graph = onnx.load(directory / "model.onnx").graph
    found = [one for one in graph.initializer if layer in one.name and ".scales" in one.name]
    assert len(found) == 1, [one.name for one in graph.initializer]
    return np.asarray(numpy_helper.to_array(found[0]), np.float32)


def test_a_name_that_no_table_has_is_told_which_there_are() -> None:
    with pytest.raises(ValidationError, match="Input should be 'rtn', 'gptq', 'awq' or 'autoround'"):
        CompressRecipe(to="int4-onnx", weights="nf4")


def test_an_old_recipes_wide_share_still_works_and_says_its_new_name() -> None:
    with pytest.warns(FutureWarning, match="wide_share is called high_precision_fraction now"):
        old = CompressRecipe.model_validate({"to": "int4-onnx", "weights": "gptq", "wide_share": 0.3})
    assert old == CompressRecipe(to="int4-onnx", weights="gptq", high_precision_fraction=0.3)
    with pytest.raises(ValidationError, match="leave wide_share out"):
        CompressRecipe.model_validate({"wide_share": 0.3, "high_precision_fraction": 0.1})


@pytest.mark.filterwarnings("error")
def test_a_bundles_stored_wide_share_is_read_without_a_word() -> None:
    from compress.recipe import recipe_from

    stored = json.loads(
        '{"to": "w8a8", "weights": "rtn", "wide_share": 0.5, "builder": "llmcompressor 0.13.0"}'
    )
    assert recipe_from(stored).high_precision_fraction == 0.5
