"""What cannot be compressed is told by its architecture, before any work and without torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from compress.targets.architectures import architecture_of, refuse_architecture, rope_types
from everlearn.errors import Unsupported

LACKING = (
    "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "MixtralForCausalLM", "Qwen3MoeForCausalLM", "OlmoForCausalLM",
    "Olmo2ForCausalLM", "Olmo3ForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM", "FalconForCausalLM",
    "BloomForCausalLM", "MptForCausalLM", "StableLmForCausalLM", "GPTJForCausalLM", "OPTForCausalLM",
)  # fmt: skip


@pytest.mark.parametrize("name", LACKING)
@pytest.mark.parametrize("to", ["int4-onnx", "int8-onnx", "fp32-onnx", "gguf"])
def test_an_architecture_that_is_not_built_is_refused_by_name_with_what_can_be_done(
    name: str, to: str
) -> None:
    with pytest.raises(Unsupported) as refused:
        refuse_architecture({"architectures": [name], "model_type": "x"}, "generate", to)
    said = refused.value.message
    assert name in said and to in said and "vLLM" in said and "docs/supported-architectures.md" in said


@pytest.mark.parametrize("to", ["w8a8", "w4a16"])
@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 8}, "experts"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 128}, "experts"),
        ({"architectures": ["DeepseekV3ForCausalLM"], "n_routed_experts": 256}, "experts"),
        ({"architectures": ["GPT2LMHeadModel"]}, "no linear ones"),
        ({"architectures": ["FalconForCausalLM"]}, "a class of its own"),
        ({"architectures": ["MptForCausalLM"]}, "vLLM"),
        ({"architectures": ["CodeGenForCausalLM"]}, "vLLM"),
        ({"architectures": ["FooForCausalLM"]}, "vLLM"),
    ],
)
def test_an_architecture_that_llmcompressor_would_not_round_is_refused(
    to: str, values: dict[str, Any], why: str
) -> None:
    with pytest.raises(Unsupported, match=f"{values['architectures'][0]} cannot be made into {to}: .*{why}"):
        refuse_architecture({"model_type": "x", **values}, "generate", to)


@pytest.mark.parametrize("to", ["int4-onnx", "int8-onnx", "fp32-onnx", "gguf", "w8a8", "w4a16"])
def test_llama_is_refused_nothing(to: str) -> None:
    refuse_architecture({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "generate", to)


@pytest.mark.parametrize("named", [None, [], 7, [7], "LlamaForCausalLM"])
def test_a_config_that_names_no_architecture_is_told_as_such(named: Any) -> None:
    with pytest.raises(Unsupported, match="names no architecture"):
        architecture_of({"architectures": named})


def test_rope_types_are_read_as_transformers_4_and_5_wrote_them() -> None:
    assert rope_types({}) == {"default"}
    assert rope_types({"rope_scaling": None}) == {"default"}
    assert rope_types({"rope_scaling": {"type": "linear", "factor": 2.0}}) == {"linear"}
    assert rope_types({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}) == {"yarn"}
    layers = {"full_attention": {"rope_type": "linear"}, "sliding_attention": {"rope_theta": 1e4}}
    assert rope_types({"rope_parameters": layers}) == {"linear", "default"}


def test_refusing_needs_no_torch() -> None:
    code = (
        "import sys, compress.targets.architectures, compress.measure.parity; "
        "assert not {'torch', 'transformers', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("to", ["int4-onnx", "w8a8", "w4a16"])
def test_an_encoder_is_told_what_it_can_be_made_into(to: str) -> None:
    with pytest.raises(Unsupported, match="int8-onnx or fp32-onnx"):
        refuse_architecture({"architectures": ["BertModel"], "model_type": "bert"}, "embed", to)


def test_an_encoder_that_no_test_holds_to_torch_is_refused_by_name() -> None:
    config = {"architectures": ["XLNetModel"], "model_type": "xlnet"}
    with pytest.raises(Unsupported, match=r"XLNetModel cannot be made into int8-onnx.*graphs of xlnet"):
        refuse_architecture(config, "embed", "int8-onnx")
