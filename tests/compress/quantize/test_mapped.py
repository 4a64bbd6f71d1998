"""A model that stays in its file computes what the loaded one does, and takes no memory for its weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compress.parent_files import keep_tokenizer
from compress.quantize.mapped import computing_with, mapped_causal_lm
from train.models.load import load_causal_lm

IDS = torch.arange(3, 60)[None]


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def saved(request: pytest.FixtureRequest, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    load_causal_lm(parent).to(request.param).save_pretrained(directory)
    keep_tokenizer(parent, directory)
    return directory


def test_a_mapped_model_predicts_to_the_bit_what_the_loaded_one_does(saved: Path) -> None:
    mapped = mapped_causal_lm(saved)
    before = {name: one.data_ptr() for name, one in mapped.named_parameters()}
    expected = load_causal_lm(saved)(IDS).logits
    assert expected.dtype == torch.float32
    for _ in range(2):
        assert torch.equal(mapped(IDS).logits, expected)
    assert {name: one.data_ptr() for name, one in mapped.named_parameters()} == before, "weights were kept"


def test_computing_with_other_weights_leaves_the_mapped_model_as_it_was(saved: Path) -> None:
    mapped, loaded = mapped_causal_lm(saved), load_causal_lm(saved)
    expected = mapped(IDS).logits
    layer = mapped.model.layers[0].mlp.up_proj
    with computing_with([layer], lambda module, _: module.weight * 2):
        doubled = mapped(IDS).logits
        with pytest.raises(RuntimeError):
            layer(torch.zeros(1, 3))
    with torch.no_grad():
        loaded.model.layers[0].mlp.up_proj.weight *= 2
    assert torch.equal(doubled, loaded(IDS).logits) and not torch.equal(doubled, expected)
    assert torch.equal(mapped(IDS).logits, expected)


MEMORY = """
import json, sys, torch
from pathlib import Path
from compress.targets.onnx_decoder import build_onnx_decoder

def anonymous():
    said = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(said["RssAnon"].split()[0]) * 1024

request = json.loads(sys.argv[1])
import onnxruntime_genai.models.builder, onnxruntime, compress.quantize.mapped, transformers
torch.zeros(64, 64) @ torch.zeros(64, 64)
before = anonymous()
most = {"": 0}
def watch(step, done=None):
    most[step] = max(most.get(step, 0), anonymous() - before)
build_onnx_decoder(request, watch)
print("MOST", json.dumps(most))
"""


@pytest.mark.slow
def test_a_model_is_built_in_a_third_of_the_memory_of_its_weights(parent: Path, tmp_path: Path) -> None:
    from compress.export import decoder_request
    from compress.recipe import CompressRecipe

    config = LlamaConfig(
        vocab_size=512, hidden_size=1024, intermediate_size=4096, num_hidden_layers=16, num_attention_heads=16,
        num_key_value_heads=16, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size="100MB")
    keep_tokenizer(parent, tmp_path / "model")
    size = sum(file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors"))
    (tmp_path / "made").mkdir()
    recipe = CompressRecipe()
    request = decoder_request(tmp_path / "model", tmp_path / "made", recipe, tmp_path / "scratch")
    request |= {"tokens": 512}
    said = subprocess.run(
        [sys.executable, "-c", MEMORY, json.dumps(request)], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr[-2000:]
    most = json.loads(next(line for line in said.stdout.splitlines() if line.startswith("MOST"))[5:])
    print(size, most)
    assert max(most.values()) < size / 3
