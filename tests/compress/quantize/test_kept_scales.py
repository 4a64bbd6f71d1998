"""A version that updates another is rounded on that one's scales: most of its bytes stay."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from compress.export import export
from compress.recipe import CompressRecipe
from compress.targets.table import TARGETS
from everlearn.bundles.bundle import write_bundle
from everlearn.errors import Unsupported
from everlearn.registry.records import Version
from everlearn.registry.registry import Registry
from everlearn.settings import Settings


def lesson(registry: Registry, of: Version) -> Version:
    """A version whose matrices are all a hundredth of their norm away from those of ``of``."""
    torch.manual_seed(1)
    with registry.staging() as staging:
        shutil.copytree(
            registry.path(of), staging, dirs_exist_ok=True, ignore=shutil.ignore_patterns("bundle.json")
        )
        weights = load_file(staging / "model.safetensors")
        for name, values in weights.items():
            if values.ndim == 2:
                change = torch.randn(values.shape) * values.float().std() / 100
                weights[name] = (values.float() + change).to(values.dtype)
        save_file(weights, staging / "model.safetensors", {"format": "pt"})
        manifest = of.manifest
        write_bundle(
            staging, name=of.model, format="safetensors", task=of.task, architecture=manifest.architecture,
            parameters=manifest.parameters, parent=of.digest, recipe={"lesson": {}}, metrics={},
        )  # fmt: skip
        return registry.add(staging, of.model)


def constants(folder: Path) -> dict[str, np.ndarray]:
    return {
        one.name: numpy_helper.to_array(one, str(folder))
        for one in onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer
    }


@pytest.mark.parametrize(("weights", "wide"), [("rtn", 0.0), ("gptq", 0.2)])
def test_a_lesson_keeps_the_scales_and_bits_of_the_version_it_updates_and_most_of_the_codes(
    tiny_settings: Settings, weights: str, wide: float
) -> None:
    registry = Registry(tiny_settings)
    recipe = CompressRecipe(weights=weights, head_bits=4, high_precision_fraction=wide)
    keeping = recipe.model_copy(update={"scales_from": "parent"})
    first = export(tiny_settings, "tiny@1", keeping)
    assert "scales_of" not in first.manifest.recipe["export"], "there is none before it"
    taught = lesson(registry, registry.resolve("tiny@1"))
    kept = export(tiny_settings, taught.ref, keeping)
    assert kept.manifest.recipe["export"]["scales_of"] == first.digest
    assert kept.manifest.metrics["divergence"] < TARGETS["int4-onnx"].max_divergence
    before, after = (constants(registry.path(one)) for one in (first, kept))
    scales = [name for name in before if ".scales" in name]
    codes = [name for name in before if name.endswith(".codes")]
    assert len(scales) == len(codes) >= 8 and before.keys() == after.keys()
    assert {name: before[name].shape for name in codes} == {name: after[name].shape for name in codes}
    assert all(np.array_equal(before[name], after[name]) for name in scales)
    assert same(before, after, codes) > (0.6 if wide else 0.9)
    if not wide:
        anew = constants(registry.path(export(tiny_settings, taught.ref, recipe)))
        assert same(before, anew, codes) < same(before, after, codes) and same(before, anew, scales) < 0.5


def same(before: dict[str, np.ndarray], after: dict[str, np.ndarray], names: list[str]) -> float:
    """The share of the numbers that stay."""
    return float(np.mean(np.concatenate([(before[name] == after[name]).ravel() for name in names])))


def test_scales_of_another_model_are_refused(tiny_settings: Settings) -> None:
    from compress.quantize.kept_scales import kept_scales

    registry = Registry(tiny_settings)
    made = next(one for one in registry.versions("tiny") if one.format == "onnx-genai")
    folder = registry.path(made)
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    assert any(node.op_type == "MatMulNBits" for node in graph.node)
    with pytest.raises(Unsupported, match="compress with fresh scales"):
        kept_scales(folder, {"lm_head": 7})


@pytest.mark.parametrize("said", [{"to": "w4a16"}, {"to": "fp32-onnx"}, {"to": "w8a8"}])
def test_a_target_without_scales_to_keep_says_which_have_them(said: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="scales_from: parent is for int4-onnx and int8-onnx by rtn or gptq"):
        CompressRecipe(scales_from="parent", **said)
