"""What llmcompressor makes for vLLM: INT8 weights and activations, INT4 weights. Runs where it is installed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compress.export import build_export, export, recipe_of, vllm_request
from compress.measure.parent_divergence import held_windows
from compress.measure.parity import Drifted
from compress.parent_files import keep_tokenizer
from compress.quantize import autoround
from compress.quantize.blocks import linear_layers
from compress.quantize.sensitivity import all_in_int8, sensitivities, stacked
from compress.recipe import Calibration, CompressRecipe
from compress.targets import vllm as vllm_target
from everlearn.errors import Unsupported
from everlearn.registry.registry import Registry, Version
from everlearn.settings import Settings
from tests.support.tiny_models import tiny_config
from train.models.load import load_causal_lm

RECIPE = CompressRecipe(to="w8a8", high_precision_fraction=0, calibration=Calibration(tokens=2048))


def test_without_llmcompressor_the_error_says_what_to_install(
    tiny_settings: Settings, tmp_path: Path
) -> None:
    registry = Registry(tiny_settings)
    model_dir = registry.path(registry.resolve("tiny@1"))
    request = {"model_dir": str(model_dir), "directory": str(tmp_path), "to": "w8a8"}
    hidden = (
        "import importlib.util as u, sys, json\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'llmcompressor' else find(name, *rest)\n"
        "from compress.targets.vllm import build_vllm_checkpoint\n"
        "from everlearn.errors import Unsupported\n"
        "try: build_vllm_checkpoint(json.loads(sys.argv[1]), print)\n"
        "except Unsupported as error: print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", hidden, json.dumps(request)], capture_output=True, text=True, check=True
    )
    assert "pip install 'everlearn[compress]'" in said.stdout


def test_an_encoder_is_not_offered_in_w8a8(tiny_settings: Settings) -> None:
    with pytest.raises(Unsupported, match="int8-onnx or fp32-onnx"):
        export(tiny_settings, "encoder", RECIPE)


@pytest.fixture(scope="module")
def w8a8(tiny_settings: Settings) -> Version:
    if find_spec("llmcompressor") is None:
        pytest.skip("llmcompressor is not installed")
    return export(tiny_settings, "tiny@1", RECIPE)


def test_linear_layers_are_int8_and_the_rest_bfloat16(tiny_settings: Settings, w8a8: Version) -> None:
    directory = Registry(tiny_settings).path(w8a8)
    kinds: dict[str, set[str]] = {}
    with safe_open(directory / "model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            kind = name.rpartition("_proj.")[2] if "_proj." in name else "other"
            kinds.setdefault(kind, set()).add(str(tensors.get_tensor(name).dtype))
    assert kinds == {
        "weight": {"torch.int8"},
        "weight_scale": {"torch.float32"},
        "other": {"torch.bfloat16"},
    }


def test_w8a8_is_a_compressed_tensors_bundle_for_generation(tiny_settings: Settings, w8a8: Version) -> None:
    directory = Registry(tiny_settings).path(w8a8)
    said = json.loads((directory / "config.json").read_text())["quantization_config"]
    assert (w8a8.format, w8a8.task) == ("compressed-tensors", "generate")
    assert said["quant_method"] == "compressed-tensors"
    assert said["config_groups"]["group_0"]["input_activations"]["dynamic"] is True
    for name in ("tokenizer.json", "chat_template.jinja", "config.json"):
        assert (directory / name).is_file()
    assert recipe_of(w8a8) == RECIPE
    assert w8a8.manifest.recipe["export"]["calibration_seen"]["tokens"] == 2048


def test_w8a8_diverges_from_its_parent_a_little(w8a8: Version) -> None:
    metrics = w8a8.manifest.metrics
    assert 0 < metrics["divergence"] < 0.01
    assert metrics["agreement"] > 0.9
    assert metrics["perplexity_ratio"] == pytest.approx(1, abs=0.02)


def test_w8a8_is_compared_with_torch_carrying_the_weights_of_the_checkpoint(
    tiny_settings: Settings, parent: Path, w8a8: Version, tmp_path: Path
) -> None:
    made = Registry(tiny_settings).path(w8a8)
    windows = held_windows(parent, 512)
    vllm_target.refuse_other_weights(parent, made, windows)
    other = shutil.copytree(made, tmp_path / "other")
    config = json.loads((made / "config.json").read_text())
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    (other / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    with pytest.raises(Drifted, match="nats per token away from torch with the same weights"):
        vllm_target.refuse_other_weights(parent, other, windows)
    tensors = load_file(made / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")[
        :90
    ].clone()
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = tensors.pop(
        "model.layers.0.mlp.up_proj.weight_scale"
    )[:90].clone()
    save_file(tensors, other / "model.safetensors")
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match="up_proj"):
        vllm_target.refuse_other_weights(parent, other, windows)


def test_two_w8a8_builds_are_the_same_bytes(tiny_settings: Settings, w8a8: Version, tmp_path: Path) -> None:
    registry = Registry(tiny_settings)
    build_export(registry.path(registry.resolve("tiny@1")), tmp_path, "generate", RECIPE)
    files = {path: entry.sha256 for path, entry in w8a8.manifest.files.items()}
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in tmp_path.iterdir()} == files


@pytest.fixture(scope="module")
def outliers(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, one input of each down_proj a hundred times larger; it means the same."""
    if find_spec("llmcompressor") is None:
        pytest.skip("llmcompressor is not installed")
    import torch

    directory = tmp_path_factory.mktemp("outliers")
    model = load_causal_lm(parent)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[3] *= 100
            layer.mlp.down_proj.weight[:, 3] /= 100
    model.save_pretrained(directory)
    keep_tokenizer(parent, directory)
    return directory


def made_of(model_dir: Path, directory: Path, recipe: CompressRecipe) -> dict[str, Any]:
    """What the child says, in this process."""
    request = vllm_request(model_dir, directory, recipe) | {"tokens": 512}
    return vllm_target.build_vllm_checkpoint(request, lambda *_: None)


def test_outliers_of_the_activations_are_divided_out(
    outliers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    price: dict[bool, float] = {}
    for smoothed in (True, False):
        if not smoothed:
            monkeypatch.setattr(vllm_target, "SMOOTHED", ())
        price[smoothed] = made_of(outliers, tmp_path / str(smoothed), RECIPE)["compared"]["divergence"]
    assert price[True] < price[False] / 5


def test_measuring_layers_leaves_a_model_with_divided_outliers_as_it_is(outliers: Path) -> None:
    import torch

    model, ids = load_causal_lm(outliers), torch.arange(64)[None]
    vllm_target.one_shot(model, ids, [vllm_target.smoothing()])
    before = {name: values.clone() for name, values in model.state_dict().items()}
    groups = stacked([name for name in linear_layers(model).values() if name != "lm_head"])
    costs = sensitivities(model, ids, groups, all_in_int8)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert sensitivities(model, ids, dict(reversed(groups.items())), all_in_int8) == costs, "in any order"


def test_the_layers_that_8_bits_hurt_most_stay_bfloat16(
    outliers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_target, "SMOOTHED", ())
    all_rounded = made_of(outliers, tmp_path / "all", RECIPE)
    monkeypatch.setattr(vllm_target, "INT8_ENOUGH", all_rounded["compared"]["divergence"])
    enough = made_of(
        outliers, tmp_path / "enough", RECIPE.model_copy(update={"high_precision_fraction": 0.25})
    )
    assert len(enough["made"]["wide"]) < 2, "what others cost together is little"
    monkeypatch.setattr(vllm_target, "INT8_ENOUGH", 0)
    made = made_of(outliers, tmp_path / "most", RECIPE.model_copy(update={"high_precision_fraction": 0.25}))
    with safe_open(tmp_path / "most" / "model.safetensors", "pt") as tensors:
        kinds = {
            name.removesuffix(".weight"): str(tensors.get_tensor(name).dtype)
            for name in tensors.keys()  # noqa: SIM118
            if name.endswith("_proj.weight")
        }
    wide = {f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)}
    assert set(made["made"]["wide"]) == wide, "the layers that read the outliers"
    assert {name for name, kind in kinds.items() if kind == "torch.bfloat16"} == wide
    assert {kind for name, kind in kinds.items() if name not in wide} == {"torch.int8"}
    assert made["compared"]["divergence"] < all_rounded["compared"]["divergence"] / 5


@pytest.fixture(scope="module")
def int4(tiny_settings: Settings) -> dict[str, Version]:
    if find_spec("llmcompressor") is None:
        pytest.skip("llmcompressor is not installed")
    made: dict[str, Version] = {}
    for weights in ("rtn", "gptq", "awq"):
        recipe = CompressRecipe(
            to="w4a16", weights=weights, group_size=32, calibration=Calibration(tokens=2048)
        )
        made[weights] = export(tiny_settings, "tiny@1", recipe)
    return made


def test_int4_weights_are_packed_with_a_scale_each_group(
    tiny_settings: Settings, int4: dict[str, Version]
) -> None:
    for version in int4.values():
        directory = Registry(tiny_settings).path(version)
        said = json.loads((directory / "config.json").read_text())["quantization_config"]
        assert said["format"] == "pack-quantized"
        weights = said["config_groups"]["group_0"]["weights"]
        assert (weights["num_bits"], weights["group_size"]) == (4, 32)
        with safe_open(directory / "model.safetensors", "pt") as tensors:
            name = "model.layers.0.mlp.up_proj.weight"
            assert tuple(tensors.get_tensor(f"{name}_packed").shape) == (96, 64 // 8)
            assert tuple(tensors.get_tensor(f"{name}_scale").shape) == (96, 2)


def test_gptq_is_nearer_than_rounding_and_awq_is_another_thing(int4: dict[str, Version]) -> None:
    """Random weights have none of the salient channels that AWQ protects: here it is no better than rounding."""
    apart = {weights: version.manifest.metrics["divergence"] for weights, version in int4.items()}
    assert 0 < apart["gptq"] < apart["rtn"] < 0.5
    assert 0 < apart["awq"] < 0.5 and apart["awq"] != apart["rtn"]


def test_autoround_learns_which_way_to_round(
    parent: Path, int4: dict[str, Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoround, "STEPS", 40)
    recipe = CompressRecipe(
        to="w4a16", weights="autoround", group_size=32, calibration=Calibration(tokens=2048)
    )
    compared = made_of(parent, tmp_path / "learnt", recipe)["compared"]
    assert 0 < compared["divergence"] < 0.8 * int4["rtn"].manifest.metrics["divergence"]
    with safe_open(tmp_path / "learnt" / "model.safetensors", "pt") as tensors:
        assert tuple(tensors.get_tensor("model.layers.0.mlp.up_proj.weight_packed").shape) == (96, 64 // 8)


def test_a_group_that_does_not_divide_a_layer_is_refused_by_its_name(
    tiny_settings: Settings, tmp_path: Path
) -> None:
    recipe = CompressRecipe(to="w4a16", group_size=128, calibration=Calibration(tokens=2048))
    with pytest.raises(Unsupported, match=r"q_proj has 64 inputs, no multiple of 128; a smaller group_size"):
        export(tiny_settings, "tiny@1", recipe)


LOG_PROBABILITIES = """
import json, os, sys
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_PLUGINS": "everlearn_int4",
    "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
}
from vllm import LLM, SamplingParams, TokensPrompt
directory, dtype, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
llm = LLM(model=directory, dtype=dtype, enforce_eager=True, max_model_len=64, max_num_seqs=4)
asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
found = llm.generate([TokensPrompt(prompt_token_ids=one) for one in prompts], asked)
said = [
    [step[token].logprob for step, token in zip(one.prompt_logprobs[1:], one.prompt_token_ids[1:])]
    for one in found
]
print("FOUND", json.dumps(said))
"""


@pytest.mark.slow
def test_vllm_finds_what_torch_finds_with_int4(parent: Path, tmp_path: Path) -> None:
    """On a CPU without AVX-512, too, where the weights are unpacked as they are loaded."""
    if find_spec("vllm") is None or find_spec("llmcompressor") is None:
        pytest.skip("vLLM or llmcompressor is not installed")
    import torch
    from transformers import LlamaForCausalLM

    config = tiny_config()
    config.head_dim = 64  # vLLM's attention on CPUs has no smaller ones than 32
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wider")
    keep_tokenizer(parent, tmp_path / "wider")
    (directory := tmp_path / "int4").mkdir()
    recipe = CompressRecipe(to="w4a16", weights="gptq", group_size=32, calibration=Calibration(tokens=2048))
    build_export(tmp_path / "wider", directory, "generate", recipe)
    able = torch.cpu.get_capabilities()
    dtype, apart = ("bfloat16", 0.1) if able.get("avx512_f") else ("float32", 1e-3)
    prompts = [[5, 70, 333, 12, 480, 3, 3, 250], list(range(40, 70))]
    said = subprocess.run(
        [sys.executable, "-c", LOG_PROBABILITIES, str(directory), dtype, json.dumps(prompts)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-2000:]
    found = json.loads(next(line for line in said.stdout.splitlines() if line.startswith("FOUND"))[6:])
    model = load_causal_lm(directory)
    for prompt, ours in zip(prompts, found, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt])).logits[0, :-1].float()
        theirs = logits.log_softmax(-1).gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(ours), theirs, atol=apart, rtol=0)
