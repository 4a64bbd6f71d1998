"""A GGUF file says the same as the model: to the importer here, and to llama.cpp."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import Qwen2Config, Qwen2ForCausalLM

from compress.export_gguf import export_gguf
from compress.targets.gguf import plain, write_gguf
from compress.targets.gguf_vocabulary import tokenizer_fields
from everlearn.errors import InvalidInput, Unsupported
from everlearn.importing.sources import import_model
from everlearn.progress import silent
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.support.tiny_models import tiny_config
from train.evaluate.logits import torch_logits
from train.models.load import load_causal_lm


@pytest.fixture(params=["llama", "qwen2"])
def model_dir(request: pytest.FixtureRequest, parent: Path, tmp_path: Path) -> Path:
    if request.param == "llama":
        return parent
    directory = Path(shutil.copytree(parent, tmp_path / "qwen2"))
    config = Qwen2Config(
        **{
            name: getattr(tiny_config(), name)
            for name in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "max_position_embeddings",
                "tie_word_embeddings",
                "bos_token_id",
                "eos_token_id",
            )
        }
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.bias)
    model.save_pretrained(directory)
    return directory


def test_a_gguf_file_is_read_back_bit_for_bit(model_dir: Path, settings: Settings, tmp_path: Path) -> None:
    write_gguf(model_dir, tmp_path / "tiny.gguf", plain("f32"), silent)
    version = import_model(settings, str(tmp_path / "tiny.gguf"), name="again")
    directory = Registry(settings).path(version)
    before, after = (load_causal_lm(one).state_dict() for one in (model_dir, directory))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ours, theirs = (Tokenizer.from_file(str(one / "tokenizer.json")) for one in (model_dir, directory))
    text = "Genesis 1:1 In the beginning; <|im_start|>user 2024"
    assert ours.encode(text).ids == theirs.encode(text).ids
    assert (directory / "chat_template.jinja").read_text() == (model_dir / "chat_template.jinja").read_text()


def test_llama_cpp_goes_on_as_torch_does(parent: Path, tmp_path: Path) -> None:
    write_gguf(parent, file := tmp_path / "tiny.gguf", plain("f32"), silent)
    model = load_causal_lm(parent)
    command = [
        sys.executable,
        "-m",
        "benchmarks.serve.llamacpp_server",
        str(file),
        "--threads",
        "2",
        "--slots",
        "1",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = next(line for line in server.stdout if line.startswith("listening")).split()[1]
        random = np.random.default_rng(0)
        checked = 0
        for _ in range(12):
            prompt = random.integers(3, 512, random.integers(4, 60)).tolist()
            body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 5, "cache_prompt": False}
            said = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["logprobs"]
            (logits,) = torch_logits(model, np.array([prompt]))
            expected = torch.from_numpy(logits[-1]).log_softmax(-1)
            if not said:
                continue  # half a character is not sent
            first = said["content"][0]["top_logprobs"]
            for one in first:
                assert one["logprob"] == pytest.approx(expected[one["id"]].item(), abs=0.02)
            assert first[0]["id"] == int(expected.argmax())
            checked += 1
        assert checked >= 4
        server.stdin.close()


def test_eight_bits_are_smaller_and_near(tiny_settings: Settings, tmp_path: Path) -> None:
    sizes = {}
    for kind in ("f16", "q8_0", "q4_0"):
        metrics = export_gguf(tiny_settings, "tiny@1", tmp_path / f"{kind}.gguf", kind)
        sizes[kind] = (metrics["size_bytes"], metrics["divergence"])
    assert sizes["q4_0"][0] < sizes["q8_0"][0] < sizes["f16"][0]
    assert sizes["f16"][1] < sizes["q8_0"][1] < sizes["q4_0"][1] < 1


def test_a_folder_that_is_not_there_is_named(tiny_settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nowhere is no folder"):
        export_gguf(tiny_settings, "tiny@1", tmp_path / "nowhere" / "x.gguf", "f16")
    with pytest.raises(InvalidInput, match="is an encoder"):
        export_gguf(tiny_settings, "encoder", tmp_path / "x.gguf", "f16")


def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused_and_nothing_is_left(
    parent: Path, tmp_path: Path
) -> None:
    (directory := tmp_path / "model").mkdir()
    for file in parent.iterdir():
        if file.suffix != ".safetensors":
            (directory / file.name).write_bytes(file.read_bytes())
    said = json.loads((parent / "tokenizer.json").read_text())
    said["pre_tokenizer"] = {"type": "Whitespace"}
    (directory / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(Unsupported, match="no name known here for the way this tokenizer splits text"):
        write_gguf(directory, tmp_path / "x.gguf", plain("f16"), silent)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(directory / "tokenizer.json"))
    with pytest.raises(Unsupported, match="WordLevel"):
        tokenizer_fields(directory)
    assert not list(tmp_path.glob("*.gguf*"))
