"""Every family of decoders that a GGUF file holds, out and in: llama.cpp, torch and what is read back say the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.compress.llamacpp_quantize import library
from compress.export_gguf import export_gguf
from compress.measure.parity import Drifted
from compress.targets.gguf import family_named, plain, write_gguf
from everlearn.errors import EverlearnError, Unsupported
from everlearn.importing.gguf_architectures import write_config
from everlearn.importing.gguf_reader import convert, work
from everlearn.importing.sources import import_model
from everlearn.progress import silent
from everlearn.settings import Settings
from tests.compress.targets.gguf_families import (
    FAMILIES,
    GEMMA,
    LINEAR,
    LLAMA3,
    LONGROPE,
    SIZES,
    YARN,
    write_family,
)
from tests.support import llamacpp
from train.evaluate.held_out_text import held_out_text
from train.models.load import load_causal_lm

PROMPTS = [np.random.default_rng(seed).integers(3, 512, 12 + 60 * seed).tolist() for seed in range(5)]


def read_back(file: Path, directory: Path) -> Path:
    directory.mkdir()
    convert({"file": str(file), "directory": str(directory)}, silent)
    return directory


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_and_what_is_read_back_predict_as_torch_does(name: str, tmp_path: Path) -> None:
    model_dir = write_family(name, tmp_path / "model")
    write_gguf(model_dir, file := tmp_path / "x.gguf", plain("f32"), silent)
    model = load_causal_lm(model_dir)
    assert llamacpp.apart(file, model, PROMPTS) < 1e-4
    again = load_causal_lm(read_back(file, tmp_path / "again"))
    assert again.config.model_type == model.config.model_type or name == "mistral"
    ids = torch.tensor([PROMPTS[4]])
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_phi_3_with_positions_for_long_texts_is_read_back(tmp_path: Path) -> None:
    values: dict[str, Any] = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256}
    model_dir = write_family("phi3", tmp_path / "model", **values, head_dim=32, hidden_size=128)
    write_gguf(model_dir, file := tmp_path / "x.gguf", plain("f32"), silent)
    model, again = load_causal_lm(model_dir), load_causal_lm(read_back(file, tmp_path / "again"))
    for length in (200, 400):
        ids = torch.arange(length)[None] % 500
        with torch.inference_mode():
            torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    # llama.cpp chooses by the context it is started with: here the short texts' factors.
    said = llamacpp.ask(file, PROMPTS[:2], context=256)
    assert any(row is not None for row in said.logprobs)


# Refused before the work -------------------------------------------------------------------------------------

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
LOST: dict[str, tuple[str, dict[str, Any], str]] = {
    "Mistral with a window": ("mistral", {"sliding_window": 128}, "a sliding window of 128 tokens"),
    "Qwen2 with a window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 0, "head_dim": 16},
        "a sliding window of 128 tokens",
    ),
    "Qwen3 with a window": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0},
        "a sliding window of 64 tokens",
    ),
    "Phi3 with a window": ("phi3", {"sliding_window": 64, "head_dim": 16}, "a sliding window of 64 tokens"),
    "gelu": ("llama", {"hidden_act": "gelu"}, "the activation gelu"),
    "gelu in Qwen2": ("qwen2", {"hidden_act": "gelu_pytorch_tanh", "head_dim": 16}, "the activation gelu_pytorch"),
    "silu in Gemma 3": ("gemma3_text", {**GEMMA, "hidden_activation": "silu"}, "the activation silu"),
    "attention with biases": ("llama", {"attention_bias": True}, "attention_bias True"),
    "biases in the MLP": ("llama", {"mlp_bias": True}, "mlp_bias True"),
    "biases in Qwen3": ("qwen3", {"attention_bias": True}, "attention_bias True"),
    "dynamic positions": ("llama", {"rope_parameters": DYNAMIC}, "type dynamic are not written"),
    "other YaRN": ("qwen3", {"rope_parameters": {**YARN, "beta_fast": 16.0}}, "beta_fast 16.0"),
    "another attention factor": ("qwen3", {"rope_parameters": {**YARN, "attention_factor": 1.0}}, "attention_factor"),
    "YaRN without a factor": ("llama", {"rope_parameters": {**YARN, "factor": None}}, "type yarn with factor None"),
    "another Llama 3": ("llama", {"rope_parameters": {**LLAMA3, "low_freq_factor": 2.0}}, "type llama3 with"),
    "a Llama 3 of 300": (
        "llama", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 300}}, "type llama3 with"
    ),
    "scaled Gemma 2": ("gemma2", {**GEMMA, "rope_parameters": LINEAR}, "type linear are not written"),
    "Gemma 2 without caps": ("gemma2", {**GEMMA, "attn_logit_softcapping": None}, "no soft cap"),
    "Gemma 3 with a cap": ("gemma3_text", {**GEMMA, "final_logit_softcapping": 30.0}, "a soft cap"),
    "another scale": ("gemma3_text", {**GEMMA, "query_pre_attn_scalar": 256}, "query_pre_attn_scalar 256"),
    "other layers": (
        "gemma3_text",
        {**GEMMA, "layer_types": ["full_attention", "sliding_attention"]},
        "another order of layers with windows",
    ),
    "an architecture that is not written": ("olmo2", {}, "Olmo2ForCausalLM"),
}  # fmt: skip


@pytest.mark.parametrize("what", LOST)
def test_a_setting_that_llama_cpp_would_ignore_is_refused_by_its_name(what: str) -> None:
    name, values, said = LOST[what]
    config = AutoConfig.for_model(name, **{**SIZES, **values}).to_dict()
    config["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]]
    with pytest.raises(Unsupported, match=said):
        write_config(family_named(config), config)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("llama", {"sliding_window": 600}),
        ("llama", {"hidden_act": "swish"}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("gemma", {"sliding_window": 600, "hidden_act": "gelu_pytorch_tanh"}),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 28, "head_dim": 16},
        ),
    ],
)
def test_a_window_that_no_layer_has_or_another_name_is_not_lost(name: str, values: dict[str, Any]) -> None:
    config = AutoConfig.for_model(name, **{**SIZES, **values}).to_dict()
    config["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]]
    write_config(family_named(config), config)


@pytest.mark.parametrize("what", ["Mistral with a window", "dynamic positions"])
def test_a_gguf_file_is_refused_before_the_work_and_no_file_is_left(
    what: str, settings: Settings, tmp_path: Path
) -> None:
    name, values, said = LOST[what]
    write_family(name, tmp_path / "model", **values)
    import_model(settings, str(tmp_path / "model"), name="tiny")
    (tmp_path / "out").mkdir()
    (there := tmp_path / "out" / "x.gguf").write_text("as it was")
    steps: list[str] = []
    with pytest.raises(Unsupported, match=said):
        export_gguf(settings, "tiny", there, "f16", lambda step, done=None: steps.append(step))
    assert "encoding" not in steps and "loading the model" not in steps
    assert [(file.name, file.read_text()) for file in (tmp_path / "out").iterdir()] == [
        ("x.gguf", "as it was")
    ]


def test_a_window_as_wide_as_the_context_hides_nothing(tmp_path: Path) -> None:
    model_dir = write_family("mistral", tmp_path / "model", sliding_window=1024)
    write_gguf(model_dir, file := tmp_path / "x.gguf", plain("f32"), silent)
    assert llamacpp.apart(file, load_causal_lm(model_dir), PROMPTS) < 1e-4


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if llama.cpp were known to compute another activation for Llama than it does: the gate is the last net."""
    monkeypatch.setattr("everlearn.importing.gguf_architectures.refuse_lost", lambda family, config: None)


@pytest.mark.usefixtures("lossy")
@pytest.mark.parametrize("values", [{"hidden_act": "gelu"}, {"sliding_window": 128}])
@pytest.mark.parametrize("kind", ["f32", "q4_0"])
def test_a_file_that_is_another_model_is_refused_whatever_rounding_costs(
    kind: str, values: Mapping[str, Any], tmp_path: Path
) -> None:
    from compress.targets.gguf import build_gguf_file

    model_dir = write_family("mistral", tmp_path / "model", **{"sliding_window": None, **values})
    (tmp_path / "again").mkdir()
    file = tmp_path / "x.gguf"
    request = {"model_dir": str(model_dir), "file": str(file), "type": kind, "tokens": 1024}
    with pytest.raises(Drifted, match="nats per token away from torch with the same weights"):
        build_gguf_file({**request, "scratch": str(tmp_path / "again")}, silent)
    assert not list(tmp_path.glob("*gguf*"))


# What is read ------------------------------------------------------------------------------------------------

ROUNDED = [kind for kind in quants._type_traits if kind.name not in ("F32", "F16", "BF16", "NVFP4")]
"""Every type that the gguf package takes apart and ggml puts together."""


def test_every_type_that_gguf_takes_apart_is_read_as_llama_cpp_reads_it(tmp_path: Path) -> None:
    """One model, each of whose matrices has a type of its own."""
    model_dir = write_family(
        "llama",
        tmp_path / "model",
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=4,
        head_dim=64,
        num_key_value_heads=1,
    )
    chunk = library().ggml_quantize_chunk
    slow = [kind for kind in ROUNDED if kind.name.startswith(("IQ1", "IQ2", "IQ3"))]
    left = [kind for kind in ROUNDED if kind not in slow]

    def encode(name: str, values: Any) -> tuple[Any, Any]:
        narrow = ".attn_k." in name or ".attn_v." in name
        if values.ndim == 1 or name == "token_embd.weight" or not (slow if narrow else left):
            return values, GGMLQuantizationType.F32
        kind = (slow if narrow else left).pop()
        block, size = gguf.GGML_QUANT_SIZES[kind]
        rows, columns = values.shape
        data = np.empty((rows, columns // block * size), dtype=np.uint8)
        importance = np.ones(columns, dtype=np.float32)
        source = np.ascontiguousarray(values, dtype=np.float32)
        chunk(int(kind), source.ctypes.data, data.ctypes.data, 0, rows, columns, importance.ctypes.data)
        return data, kind

    write_gguf(model_dir, file := tmp_path / "x.gguf", encode, silent)
    assert not left and not slow
    kinds = {tensor.tensor_type for tensor in GGUFReader(str(file)).tensors}
    assert set(ROUNDED) <= kinds and len(ROUNDED) >= 20
    again = read_back(file, tmp_path / "again")
    original = load_file(model_dir / "model.safetensors")
    for name, weight in load_file(again / "model.safetensors").items():
        both = torch.stack([weight.float().flatten(), original[name].flatten()])
        assert weight.ndim == 1 or torch.corrcoef(both)[0, 1] > 0.65, name
    # llama.cpp rounds what it multiplies 8-bit weights with; torch here does not.
    assert llamacpp.apart(file, load_causal_lm(again), PROMPTS) < 0.01


def change_field(file: Path, name: str, value: Any) -> None:
    """A number among a file's metadata is another from here on."""
    reader = GGUFReader(str(file), "r+")
    field = reader.get_field(name)
    assert field
    field.parts[field.data[0]][0] = value


def test_a_file_says_nothing_that_is_left_out(tmp_path: Path) -> None:
    model_dir = write_family("qwen3", tmp_path / "model")
    file = tmp_path / "x.gguf"

    def refused(said: str, **fields: Any) -> None:
        write_gguf(model_dir, file, plain("f32"), silent)
        writer = gguf.GGUFWriter(str(tmp_path / "y.gguf"), "qwen3")
        reader = GGUFReader(str(file))
        for field in reader.fields.values():
            if field.name.startswith("GGUF.") or field.name == "general.architecture":
                continue
            kind = field.types[0]
            writer.add_key_value(
                field.name, field.contents(), kind, field.types[1] if len(field.types) > 1 else None
            )
        for key, value in fields.items():
            name = "qwen3." + key.replace("__", ".")
            (writer.add_string if isinstance(value, str) else writer.add_float32)(name, value)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        (target := tmp_path / said[:8]).mkdir()
        with pytest.raises(EverlearnError, match=said):
            convert({"file": str(tmp_path / "y.gguf"), "directory": str(target)}, silent)

    refused("qwen3.attn_logit_softcapping is 50", attn_logit_softcapping=50.0)
    refused(
        "positions of type 'longrope' are not read", rope__scaling__type="longrope", rope__scaling__factor=2.0
    )


@pytest.mark.parametrize(
    ("key", "value"), [("llama.attention.head_count", 3), ("llama.embedding_length", 32)]
)
def test_a_shape_that_the_file_does_not_describe_is_refused(key: str, value: int, tmp_path: Path) -> None:
    write_gguf(write_family("llama", tmp_path / "model"), file := tmp_path / "x.gguf", plain("f32"), silent)
    change_field(file, key, value)
    (tmp_path / "again").mkdir()
    with pytest.raises(EverlearnError):
        work({"file": str(file), "directory": str(tmp_path / "again")}, silent)


# Tokenizers --------------------------------------------------------------------------------------------------

TEXTS = [
    held_out_text().text[:3000],
    "a  b\t\tc\n\n\nd",
    " lead",
    "d\u00e9j\u00e0 \u4f60\u597d \U0001f600",
    "<0x41> it's <b>",
    "x<|im_end|> y",
]


def sentencepiece(prefix: bool) -> Tokenizer:
    """A tokenizer of Gemma's (or, with ``prefix``, Llama 2's and Phi 3's) kind, from merges of the held-out text's words."""
    space = "\u2581"
    words = held_out_text().text.replace("\n", " ").split()[:4000]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{at:02X}>" for at in range(256))]
    letters = sorted({letter for word in words for letter in word} | {space})
    tokens += letters
    merges: list[tuple[str, str]] = []
    known = set(tokens)
    for word in words:
        left = space
        for letter in word[:5]:
            if left + letter not in known:
                known.add(left + letter)
                tokens.append(left + letter)
                merges.append((left, letter))
            left += letter
    vocab = {token: at for at, token in enumerate(tokens[:508])}
    merges = [(left, right) for left, right in merges if left + right in vocab]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", space)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(space), spaces]) if prefix else spaces
    ends = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False, special=False)])
    return tokenizer


@pytest.mark.parametrize("prefix", [False, True])
def test_a_sentencepiece_vocabulary_goes_out_and_comes_in(prefix: bool, tmp_path: Path) -> None:
    model_dir = write_family("gemma3", tmp_path / "model")
    ours = sentencepiece(prefix)
    ours.save(str(model_dir / "tokenizer.json"))
    write_gguf(model_dir, file := tmp_path / "x.gguf", plain("f32"), silent)
    again = Tokenizer.from_file(str(read_back(file, tmp_path / "again") / "tokenizer.json"))
    theirs = llamacpp.ask(file, texts=TEXTS).ids
    for text, ids in zip(TEXTS, theirs, strict=True):
        assert ours.encode(text, add_special_tokens=False).ids == ids
        assert again.encode(text, add_special_tokens=False).ids == ids
        assert again.decode(ids, skip_special_tokens=False) == ours.decode(ids, skip_special_tokens=False)


def test_a_way_to_split_text_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    write_gguf(write_family("llama", tmp_path / "model"), file := tmp_path / "x.gguf", plain("f32"), silent)
    content = file.read_bytes()
    file.write_bytes(content.replace(b"smollm", b"tekken"))
    with pytest.raises(Unsupported, match="splits text as 'tekken' does"):
        read_back(file, tmp_path / "again")


# Keys --------------------------------------------------------------------------------------------------------

GENERAL = {
    *("architecture", "type", "name", "size_label", "file_type", "quantization_version"),
}
OF_LLAMA = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.key_length", "attention.value_length", "rope.freq_base", "rope.dimension_count"),
}
OF_TOKENIZERS = {
    *("ggml.model", "ggml.pre", "ggml.tokens", "ggml.token_type", "ggml.merges", "ggml.add_space_prefix"),
    *(
        "ggml.add_bos_token",
        "ggml.bos_token_id",
        "ggml.eos_token_id",
        "ggml.padding_token_id",
        "chat_template",
    ),
}


def test_every_key_that_llama_cpps_converter_sets_is_there(tmp_path: Path) -> None:
    """Of SmolLM2's and Gemma 3's files as it wrote them, without what tells of who made them."""
    model_dir = write_family("llama", tmp_path / "model")
    (model_dir / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, 0], "temperature": 0.5, "top_k": 40, "do_sample": True})
    )
    write_gguf(model_dir, file := tmp_path / "x.gguf", plain("q8_0"), silent)
    fields = {name: field.contents() for name, field in GGUFReader(str(file)).fields.items()}
    wanted = {
        *(f"general.{name}" for name in GENERAL),
        *(f"llama.{name}" for name in OF_LLAMA),
        *(f"tokenizer.{name}" for name in OF_TOKENIZERS),
    }
    assert wanted <= fields.keys()
    assert (fields["general.file_type"], fields["general.quantization_version"]) == (7, 2)
    assert fields["general.type"] == "model" and fields["tokenizer.ggml.pre"] == "smollm"
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.eot_token_id"]) == (2, 0)
    assert fields["general.sampling.top_k"] == 40
    again = json.loads((read_back(file, tmp_path / "again") / "generation_config.json").read_text())
    assert again["eos_token_id"] == [2, 0] and again["temperature"] == 0.5 and again["top_k"] == 40


# Another reader ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_openvino_genai_goes_on_as_torch_does_with_the_same_weights(
    name: str, kind: str, tmp_path: Path
) -> None:
    openvino, genai = pytest.importorskip("openvino"), pytest.importorskip("openvino_genai")
    model_dir = write_family(name, tmp_path / "model", head_dim=16, initializer_range=0.2)
    write_gguf(model_dir, file := tmp_path / "x.gguf", plain(kind), silent)
    model = load_causal_lm(read_back(file, tmp_path / "again"))
    pipe = genai.LLMPipeline(str(file), "CPU", INFERENCE_PRECISION_HINT="f32")
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos = 1, True
    same = 0
    for prompt in PROMPTS:
        ids = np.array([prompt], dtype=np.int64)
        tokens = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        (said,) = pipe.generate(tokens, config).tokens
        with torch.inference_mode():
            same += said == [int(model(torch.from_numpy(ids)).logits[0, -1].argmax())]
    assert same >= len(PROMPTS) - (kind != "f16")  # it may round what it multiplies quantized weights with
