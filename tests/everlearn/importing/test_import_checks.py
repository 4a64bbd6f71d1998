"""A model that cannot work is refused when it comes in, by what is wrong with it: a tensor, an id, a shape."""

from __future__ import annotations

import json
import math
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    Olmo2Config,
    OlmoConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from compress.targets.gguf import plain, write_gguf
from everlearn.bundles.bundle import MANIFEST, write_bundle
from everlearn.errors import InvalidInput
from everlearn.importing.model_check import check
from everlearn.importing.plain_decoders import PLAIN_DECODERS, check_plain
from everlearn.importing.sources import import_model
from everlearn.importing.vocabulary import check_sampling
from everlearn.importing.weights import CHUNK_BYTES, check_finite
from everlearn.progress import silent
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.compress.test_encoder_families import FAMILIES as ENCODERS
from tests.support.architecture_rows import SHAPE, rope, working
from tests.support.tiny_models import write_bert
from train.models.load import load_causal_lm

NAME = "model.layers.1.mlp.up_proj.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def change_weights(
    directory: Path, change: Callable[[Tensors], object], name: str = "model.safetensors"
) -> None:
    tensors = load_file(directory / name)
    change(tensors)
    save_file(tensors, directory / name, metadata={"format": "pt"})


def change_json(file: Path, **values: Any) -> None:
    said = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(said | values))


def refused(settings: Settings, source: Path, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        import_model(settings, str(source), name="tiny")
    assert not Registry(settings).list()


# Values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_one_value_that_is_no_number_is_refused_by_its_tensor(
    settings: Settings, copy: Path, dtype: str, value: float
) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[NAME] = tensors[NAME].to(getattr(torch, dtype))
        tensors[NAME].view(-1)[-1] = value

    change_weights(copy, spoil)
    refused(
        settings, copy, rf"^1 of the values of the tensor {re.escape(NAME)} \(model\.safetensors\) are not"
    )


def test_a_value_that_is_not_finite_is_found_in_a_part_in_a_vector_and_in_a_bundle(
    settings: Settings, copy: Path, tmp_path: Path
) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, copy / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    save_file({"model.position_ids": torch.ones(2)}, copy / "model-00001-of-00002.safetensors")
    (copy / "model.safetensors").unlink()
    placed = dict.fromkeys(tensors, "model-00002-of-00002.safetensors")
    change_json(copy / "model.safetensors.index.json", weight_map=placed)
    refused(settings, copy, r"model\.norm\.weight \(model-00002-of-00002")
    known: Any = {
        "name": "x",
        "format": "safetensors",
        "task": "generate",
        "architecture": "LlamaForCausalLM",
    }
    write_bundle(copy, **known, parameters=1)
    assert (copy / MANIFEST).is_file()
    refused(settings, copy, r"model\.norm\.weight")


def test_a_value_that_is_not_finite_is_found_in_a_gguf_file(
    settings: Settings, copy: Path, tmp_path: Path
) -> None:
    change_weights(copy, lambda tensors: tensors[NAME].view(-1)[5].fill_(math.nan))
    write_gguf(copy, file := tmp_path / "x.gguf", plain("f32"), silent)
    refused(settings, file, r"blk\.1\.ffn_up\.weight holds values that are not finite")


def test_large_numbers_and_integers_are_no_damage(settings: Settings, copy: Path) -> None:
    def widen(tensors: Tensors) -> None:
        tensors[NAME].view(-1)[0] = torch.finfo(torch.float32).max
        tensors["model.position_ids"] = torch.full((4,), -1)

    change_weights(copy, widen)
    assert import_model(settings, str(copy), name="tiny").ref == "tiny@1"


def test_a_tensor_larger_than_the_memory_for_it_is_read_to_its_end(tmp_path: Path) -> None:
    rows = torch.zeros(3 * CHUNK_BYTES // 4 + 7)
    rows[-1] = math.inf
    save_file({"wide": rows}, file := tmp_path / "model.safetensors")
    header = {"wide": {"dtype": "F32", "shape": list(rows.shape), "data_offsets": [0, rows.numel() * 4]}}
    tracemalloc.start()
    with pytest.raises(InvalidInput, match=r"^1 of the values of the tensor wide"):
        check_finite({file: header}, silent)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * CHUNK_BYTES


# Shapes and types --------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "fewer rows than the vocabulary": (
        lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:500].clone()}),
        "embed_tokens.weight has 500 rows, and config.json a vocab_size of 512",
    ),
    "more rows than the vocabulary": (
        lambda t: t.update({"model.embed_tokens.weight": torch.zeros(600, 64)}),
        "has 600 rows, and config.json a vocab_size of 512",
    ),
    "a tensor less": (lambda t: t.pop(NAME), f"{NAME} is missing"),
    "a layer less": (
        lambda t: [t.pop(name) for name in list(t) if ".layers.1." in name],
        "layer 1 has no tensor, and config.json says num_hidden_layers is 2",
    ),
    "a layer more": (
        lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(96, 64)}),
        "tensors of layer 2, and config.json says num_hidden_layers is 2",
    ),
    "another width": (
        lambda t: t.update({NAME: torch.zeros(96, 32)}),
        r"has the shape \[96, 32\]; by config.json it is \[96, 64\]",
    ),
    "other heads": (
        lambda t: t.update({"model.layers.0.self_attn.k_proj.weight": torch.zeros(64, 64)}),
        r"k_proj.weight has the shape \[64, 64\]; by config.json it is \[32, 64\]",
    ),
    "integers": (lambda t: t.update({NAME: t[NAME].to(torch.int8)}), "is stored as I8, and"),
    "eight bits": (lambda t: t.update({NAME: t[NAME].to(torch.float8_e4m3fn)}), "is stored as F8_E4M3, and"),
    "no values": (lambda t: t.update({NAME: torch.zeros(0, 64)}), r"is empty: its shape is \[0, 64\]"),
}


@pytest.mark.parametrize("what", WRONG)
def test_weights_that_are_not_those_of_the_configuration_are_refused_by_name(
    settings: Settings, copy: Path, what: str
) -> None:
    change, said = WRONG[what]
    change_weights(copy, change)
    refused(settings, copy, said)


def test_parts_that_no_index_names_are_refused(settings: Settings, copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    refused(settings, copy, "need model.safetensors.index.json beside them")
    change_json(
        copy / "model.safetensors.index.json", weight_map={"a.weight": "model-00001-of-00001.safetensors"}
    )
    refused(
        settings, copy, "looks for the tensor a.weight in model-00001-of-00001.safetensors, which lacks it"
    )


def test_an_output_layer_that_is_not_there_is_refused(settings: Settings, copy: Path) -> None:
    change_json(copy / "config.json", tie_word_embeddings=False)
    refused(settings, copy, "lm_head.weight is missing")


# Whole models ------------------------------------------------------------------------------------------------

Shapes = dict[str, list[int]]
QUERIES = "model.layers.1.self_attn.q_proj"
FAULTY: dict[str, tuple[PreTrainedConfig, Callable[[Shapes], object], str]] = {
    "no embedding": (
        LlamaConfig(**SHAPE),
        lambda t: t.pop("model.embed_tokens.weight"),
        "model.embed_tokens.weight is missing",
    ),
    "half an embedding": (
        LlamaConfig(**SHAPE),
        lambda t: t.update({"model.embed_tokens.weight": [512, 32]}),
        r"embed_tokens.weight has the shape \[512, 32\]; by config.json it is \[512, 64\]",
    ),
    "no norm": (LlamaConfig(**SHAPE), lambda t: t.pop("model.norm.weight"), "model.norm.weight is missing"),
    "a short norm": (
        LlamaConfig(**SHAPE),
        lambda t: t.update({"model.norm.weight": [32]}),
        r"model.norm.weight has the shape \[32\]",
    ),
    "no matrix in any layer": (
        LlamaConfig(**SHAPE),
        lambda t: [t.pop(name) for name in list(t) if "down_proj" in name],
        r"layers.0.mlp.down_proj.weight is missing",
    ),
    "no norm in any layer": (
        LlamaConfig(**SHAPE),
        lambda t: [t.pop(name) for name in list(t) if "input_layernorm" in name],
        r"layers.0.input_layernorm.weight is missing",
    ),
    "no output layer": (LlamaConfig(**SHAPE), lambda t: t.pop("lm_head.weight"), "lm_head.weight is missing"),
    "no biases": (
        Qwen2Config(**SHAPE),
        lambda t: [t.pop(name) for name in list(t) if name.endswith("bias")],
        r"layers.0.self_attn.[qkv]_proj.bias is missing",
    ),
    "no biases that were asked for": (
        LlamaConfig(**SHAPE, attention_bias=True),
        lambda t: [t.pop(name) for name in list(t) if name.endswith("bias")],
        r"layers.0.self_attn.[qkvo]_proj.bias is missing",
    ),
    "a short bias": (
        Qwen2Config(**SHAPE),
        lambda t: t.update({f"{QUERIES}.bias": [32]}),
        r"q_proj.bias has the shape \[32\]; by config.json it is \[64\]",
    ),
    "biases": (
        LlamaConfig(**SHAPE),
        lambda t: t.update({f"{QUERIES}.bias": [64]}),
        "self_attn.q_proj.bias, which the model of config.json has not",
    ),
    "norms of queries": (
        LlamaConfig(**SHAPE),
        lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": [16]}),
        "self_attn.q_norm.weight, which the model of config.json has not",
    ),
    "no norms of queries": (
        Qwen3Config(**SHAPE),
        lambda t: [t.pop(name) for name in list(t) if "q_norm" in name],
        "layers.0.self_attn.q_norm.weight is missing",
    ),
    "a norm of all queries": (
        Qwen3Config(**SHAPE),
        lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": [64]}),
        r"q_norm.weight has the shape \[64\]; by config.json it is \[16\]",
    ),
}


def said_by(config: PreTrainedConfig, **values: Any) -> dict[str, Any]:
    """What config.json holds, as ``save_pretrained`` leaves it."""
    said = config.to_dict() | {"architectures": [f"{config.model_type}ForCausalLM"]}
    return said | values


def shapes_of(config: PreTrainedConfig) -> Shapes:
    """Those that a file of this model has: a tied output layer is not stored."""
    with torch.device("meta"):
        tensors = AutoModelForCausalLM.from_config(config).state_dict()
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("what", FAULTY)
def test_a_plain_decoder_that_is_not_its_configurations_is_refused_by_the_tensor(what: str) -> None:
    config, change, said = FAULTY[what]
    shapes = shapes_of(config)
    change(shapes)
    with pytest.raises(InvalidInput, match=said):
        check_plain(shapes, said_by(config))


def test_every_plain_decoder_is_taken_with_all_it_has_and_lacks_nothing() -> None:
    """One by one, each tensor that transformers' own model has is asked for."""
    rows = [row.config for row in working() if row.config.model_type in PLAIN_DECODERS]
    plain = {key: value for key, value in SHAPE.items() if key != "head_dim"}
    more = [OlmoConfig(**plain), Olmo2Config(**plain), OlmoConfig(**plain, attention_bias=True)]
    assert {one.model_type for one in rows + more} == PLAIN_DECODERS
    seen: set[str] = set()
    for config in rows + more:
        shapes = shapes_of(config)
        check_plain(shapes, said_by(config))
        key = f"{config.model_type} {sorted(shapes)}"
        for name in shapes if key not in seen else ():
            with pytest.raises(InvalidInput):
                check_plain({other: one for other, one in shapes.items() if other != name}, said_by(config))
        seen.add(key)


@pytest.mark.parametrize("kind", sorted(PLAIN_DECODERS))
def test_where_a_configuration_does_not_say_the_types_own_defaults_hold(kind: str) -> None:
    """Gemma's published files do not say that they are tied, nor Llama's that they are not."""
    sizes = {
        key: SHAPE[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    }
    config = AutoConfig.for_model(
        kind,
        **sizes,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    named = {"model_type": kind, "architectures": ["XForCausalLM"]}
    said = named | sizes | {"num_attention_heads": 4, "num_key_value_heads": 2}
    check_plain(shapes := shapes_of(config), said)
    if not config.tie_word_embeddings:
        with pytest.raises(InvalidInput, match=r"lm_head\.weight is missing"):
            check_plain({name: one for name, one in shapes.items() if name != "lm_head.weight"}, said)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is '0'"),
        ({"vocab_size": None}, "vocab_size is 'None'"),
        ({"vocab_size": "512"}, "vocab_size is '512'"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads, which is 3"),
        ({"num_hidden_layers": 2**62}, "layer 2 has no tensor"),
    ],
)
def test_sizes_that_no_model_has_are_refused_by_name(
    settings: Settings, copy: Path, values: dict[str, Any], said: str
) -> None:
    change_json(copy / "config.json", **values)
    refused(settings, copy, re.escape(said))


def test_a_norm_of_integers_is_refused(settings: Settings, copy: Path) -> None:
    change_weights(copy, lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    refused(settings, copy, "model.norm.weight is stored as I8")


ROPES: dict[str, tuple[dict[str, Any], str]] = {
    "no type": (rope("nope"), "transformers makes no model of it: .*nope"),
    "factors of another length": (rope("longrope", pairs=3), "transformers makes no model of it|long_factor"),
    "no factor": ({"rope_type": "yarn", "rope_theta": 10000.0}, "transformers makes no model of it"),
}


@pytest.mark.parametrize("what", ROPES)
def test_rotary_positions_that_transformers_does_not_make_are_refused(copy: Path, what: str) -> None:
    asked, said = ROPES[what]
    change_json(copy / "config.json", rope_parameters=asked)
    with pytest.raises(InvalidInput, match=said):
        check({"directory": str(copy), "task": "generate"}, silent)


def test_other_families_are_held_against_transformers_own_model(settings: Settings, tmp_path: Path) -> None:
    """In a process of its own, as encoders without a fault are in other tests."""
    write_bert(tmp_path)
    BertConfig.from_pretrained(tmp_path, num_hidden_layers=3).save_pretrained(tmp_path)
    refused(settings, tmp_path, r"encoder\.layer\.2\..* is missing from the weights")


def test_a_model_type_that_is_none_is_refused(copy: Path) -> None:
    change_json(copy / "config.json", model_type="nope")
    with pytest.raises(InvalidInput, match=r"config.json: transformers makes no model of it: .*nope"):
        check({"directory": str(copy), "task": "generate"}, silent)


@pytest.mark.parametrize("kind", [[], {}, 5, None])
def test_a_model_type_that_is_no_text_is_refused(settings: Settings, copy: Path, kind: Any) -> None:
    change_json(copy / "config.json", model_type=kind)
    refused(settings, copy, "model_type|config.json")


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders_of_every_family_pass_with_the_head_they_were_trained_with(
    family: str, tmp_path: Path
) -> None:
    AutoModelForMaskedLM.from_config(ENCODERS[family]).save_pretrained(tmp_path)
    check({"directory": str(tmp_path), "task": "embed"}, silent)


# Ids ---------------------------------------------------------------------------------------------------------


def with_fewer_tokens(directory: Path, vocab: int) -> None:
    change_json(directory / "config.json", vocab_size=vocab)
    name = "model.embed_tokens.weight"
    change_weights(directory, lambda tensors: tensors.update({name: tensors[name][:vocab].clone()}))


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused_with_both_numbers(
    settings: Settings, copy: Path
) -> None:
    with_fewer_tokens(copy, 500)
    refused(settings, copy, "ids up to 511 .* vocab_size of 500: 12 of its tokens have no row")


def test_tokens_added_without_rows_are_refused(settings: Settings, copy: Path) -> None:
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|tool|>"])
    tokenizer.save(str(copy / "tokenizer.json"))
    refused(settings, copy, r"ids up to 512 \('<|tool|>'\), and config.json a vocab_size of 512: 1 of its")


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("config.json", {"eos_token_id": 512}, "config.json: eos_token_id is 512, and must be an id below"),
        ("config.json", {"bos_token_id": -5}, "bos_token_id is -5"),
        (
            "generation_config.json",
            {"eos_token_id": [2, 49_152]},
            "generation_config.json: eos_token_id is 49152",
        ),
        ("generation_config.json", {"pad_token_id": "2"}, 'pad_token_id is "2"'),
        ("generation_config.json", {"temperature": -1}, "temperature is -1, not a number"),
        ("generation_config.json", {"top_p": "all"}, "top_p is"),
    ],
)
def test_special_ids_and_defaults_that_cannot_be_are_refused(
    settings: Settings, copy: Path, file: str, values: dict[str, Any], said: str
) -> None:
    change_json(copy / file, **values)
    refused(settings, copy, re.escape(said))


def test_a_generation_config_that_is_no_object_is_refused(settings: Settings, copy: Path) -> None:
    (copy / "generation_config.json").write_text("[1]")
    refused(settings, copy, "generation_config.json is not a JSON object")


def test_ids_that_only_a_sister_that_sees_has_are_left_out_and_said(settings: Settings, copy: Path) -> None:
    """Gemma 3's text models come with a tokenizer of one token more than they have rows."""
    config = Gemma3TextConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(copy)
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.add_special_tokens(["<image_soft_token>"])
    tokenizer.save(str(copy / "tokenizer.json"))
    version = import_model(settings, str(copy), name="tiny")
    assert version.manifest.recipe["import"]["tokens_left_out"] == ["<image_soft_token>"]
    directory = Registry(settings).path(version)
    ids = Tokenizer.from_file(str(directory / "tokenizer.json")).encode("a <image_soft_token> b").ids
    assert max(ids) < 512
    assert torch.isfinite(load_causal_lm(directory)(torch.tensor([ids])).logits).all()


def test_a_top_k_of_minus_one_means_no_limit_as_elsewhere() -> None:
    check_sampling({"top_k": -1}, "generation_config.json")
    with pytest.raises(InvalidInput, match="top_k is -2"):
        check_sampling({"top_k": -2}, "generation_config.json")
