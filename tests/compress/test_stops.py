"""A base model whose configuration names the end of a text alone, and whose template ends turns otherwise (as Qwen 2.5):
what is made of it, and what serves it, stops at both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGUFReader

from compress.export import build_export
from compress.recipe import CompressRecipe
from compress.targets.gguf import plain, write_gguf
from everlearn.bundles.bundle import write_bundle
from everlearn.cli.models import stops_at
from everlearn.progress import silent
from serve.engines.onnx.decoding.decoder import DecoderConfig
from serve.engines.vllm.requests import Requests
from tests.serve.engines.conftest import start_engine
from tests.support.tiny_models import write_llama
from train.data.tokenize import Tokens
from train.models.build import build_model
from train.models.save import write_model
from train.recipe import TrainRecipe

TEXT_END, TURN_END = 0, 2


def rewrite(file: Path, **said: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | said))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    write_llama(directory)
    for name in ("config", "generation_config"):
        rewrite(directory / f"{name}.json", eos_token_id=TEXT_END)
    rewrite(directory / "tokenizer_config.json", eos_token="<|endoftext|>")
    return directory


@pytest.fixture(scope="module")
def exported(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    made, metrics = build_export(base, directory, "generate", CompressRecipe(to="fp32-onnx"))
    write_bundle(
        directory,
        name="tiny",
        format="onnx-genai",
        task="generate",
        architecture="LlamaForCausalLM",
        parameters=None,
        parent=None,
        recipe=made,
        metrics=metrics,
    )
    return directory


def test_a_trained_model_names_both_and_means_the_same_by_its_data(base: Path, tmp_path: Path) -> None:
    recipe = TrainRecipe.model_validate({"base": "tiny", "data": {"store": "x"}})
    model = build_model(recipe, base, base)
    write_model(model, None, recipe, base, base, tmp_path / "model")
    named = json.loads((tmp_path / "model" / "generation_config.json").read_bytes())
    assert named["eos_token_id"] == [TEXT_END, TURN_END]
    assert Tokens(tmp_path / "model").sha256 == Tokens(base).sha256
    assert Tokens(tmp_path / "model").eos == [TEXT_END]


def test_an_export_names_both_and_one_made_before_is_served_with_both(exported: Path, tmp_path: Path) -> None:
    file = exported / "genai_config.json"
    assert json.loads(file.read_bytes())["model"]["eos_token_id"] == [TEXT_END, TURN_END]
    assert stops_at(exported) == [("stops at", "<|endoftext|> <|im_end|>")]
    made_before = tmp_path / "before"
    made_before.mkdir()
    for each in exported.iterdir():
        (made_before / each.name).symlink_to(each)
    (made_before / file.name).unlink()
    said = json.loads(file.read_bytes())
    (made_before / file.name).write_text(
        json.dumps(said | {"model": said["model"] | {"eos_token_id": TEXT_END}})
    )
    assert DecoderConfig.read(made_before).eos_ids == [TEXT_END, TURN_END]


@pytest.mark.slow
def test_the_engine_ends_an_answer_at_either(exported: Path) -> None:
    process, client = start_engine(exported, "tiny")
    try:
        for stop in (TEXT_END, TURN_END):
            asked = {
                "model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5,
                "logit_bias": {str(stop): 100},
            }  # fmt: skip
            answer = client.post("/v1/chat/completions", json=asked).json()
            assert answer["choices"][0]["finish_reason"] == "stop", answer
            assert answer["choices"][0]["message"]["content"] == ""
    finally:
        process.kill()
        process.wait()


def test_vllm_is_told_of_what_the_configuration_lacks_and_of_nothing_else(base: Path, tmp_path: Path) -> None:
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}).encode()
    assert Requests(base).chat(body).body["stop_token_ids"] == [TURN_END]
    text = json.dumps({"model": "tiny", "prompt": "Hello"}).encode()
    assert Requests(base).completion(text).body["stop_token_ids"] == [TURN_END]
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rewrite(tmp_path / "generation_config.json", eos_token_id=[TEXT_END, TURN_END])
    assert "stop_token_ids" not in Requests(tmp_path).chat(body).body


def test_a_gguf_file_names_the_end_of_a_text_and_that_of_a_turn(base: Path, tmp_path: Path) -> None:
    write_gguf(base, tmp_path / "model.gguf", plain("f32"), silent)
    fields = GGUFReader(str(tmp_path / "model.gguf")).fields
    named = [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eos", "eot")]
    assert named == [TEXT_END, TURN_END]
