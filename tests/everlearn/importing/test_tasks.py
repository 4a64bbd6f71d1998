"""Each kind of model is taken as the task it does, opens as that in transformers, and is refused where it has no use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from compress.export import export_onnx
from everlearn.bundles.contents import read_json_object
from everlearn.bundles.tasks import Task, task_of
from everlearn.errors import InvalidInput, Unsupported
from everlearn.importing.model_check import compare
from everlearn.importing.sources import import_model
from everlearn.progress import silent
from everlearn.settings import Settings
from serve.engines.programs import program
from tests.support.tiny_models import train_tokenizer
from train.models.load import load_model

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
T5: dict[str, Any] = {
    "vocab_size": 512,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 1,
    "num_heads": 2,
}
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
MODELS: dict[str, tuple[Task, Any]] = {
    "BertForMaskedLM": ("fill_mask", transformers.BertConfig(**SIZES)),
    "BertForPreTraining": ("fill_mask", transformers.BertConfig(**SIZES)),
    "RobertaForMaskedLM": ("fill_mask", transformers.RobertaConfig(**SIZES)),
    "ModernBertForMaskedLM": (
        "fill_mask",
        transformers.ModernBertConfig(**{**SIZES, **MARKS, "num_hidden_layers": 2}),
    ),
    "T5ForConditionalGeneration": ("text2text", transformers.T5Config(**T5, feed_forward_proj="gated-gelu")),
    "BertForSequenceClassification": ("classify", transformers.BertConfig(**SIZES, num_labels=3)),
    "RobertaForSequenceClassification": ("score", transformers.RobertaConfig(**SIZES, num_labels=1)),
    "BertForTokenClassification": ("token_classify", transformers.BertConfig(**SIZES)),
    "BertForQuestionAnswering": ("question_answer", transformers.BertConfig(**SIZES)),
}


def write_model(directory: Path, name: str) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, name)(MODELS[name][1])
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=train_tokenizer()).save_pretrained(directory)
    return model


@pytest.mark.parametrize("name", list(MODELS))
def test_a_head_says_the_task_and_all_its_weights_are_loaded(tmp_path: Path, name: str) -> None:
    model, task = write_model(tmp_path, name), MODELS[name][0]
    config = read_json_object(tmp_path / "config.json")
    if name != "BertForPreTraining":  # its files, as BERT's first ones, are those of a masked model and more
        assert task_of(name, config, has_modules=False) == task
    compare(tmp_path, task)
    loaded, before = load_model(tmp_path, task).state_dict(), model.state_dict()
    assert all(torch.equal(tensor, before[key]) for key, tensor in loaded.items())


def test_a_missing_head_is_refused_unless_it_is_to_be_new(tmp_path: Path) -> None:
    body = write_model(tmp_path, "BertForMaskedLM").bert.state_dict()
    with pytest.raises(InvalidInput, match="is missing from the weights"):
        load_model(tmp_path, "classify")
    torch.manual_seed(1)
    named = {"id2label": {0: "ham", 1: "spam", 2: "other"}, "label2id": {"ham": 0, "spam": 1, "other": 2}}
    model = load_model(tmp_path, "classify", new_head=True, settings=named)
    assert model.classifier.out_features == 3 and model.config.id2label[1] == "spam"
    assert all(
        torch.equal(tensor, body[key]) for key, tensor in model.bert.state_dict().items() if key in body
    )
    torch.manual_seed(1)
    again = load_model(tmp_path, "classify", new_head=True, settings=named)
    assert torch.equal(model.classifier.weight, again.classifier.weight)


def test_encoders_of_sentence_transformers_stay_encoders() -> None:
    assert task_of("BertForMaskedLM", {}, has_modules=True) == "embed"
    assert task_of("XLMRobertaModel", {}, has_modules=False) == "embed"
    assert task_of("BertForSequenceClassification", {}, has_modules=True) == "classify"
    assert task_of("CLIPModel", {}, has_modules=False) == "image_text"


@pytest.mark.parametrize(
    "name", ["WhisperForConditionalGeneration", "Gemma3ForConditionalGeneration", "ViTForImage"]
)
def test_models_of_speech_and_images_are_refused_with_what_is_taken(name: str) -> None:
    with pytest.raises(Unsupported, match=r"encoders with a head .*encoder-decoders of text .bart, .*t5"):
        task_of(name, {"model_type": "whisper"}, has_modules=False)


def test_an_imported_masked_model_is_one_and_every_room_says_what_it_takes(
    settings: Settings, tmp_path: Path
) -> None:
    write_model(tmp_path / "bert", "BertForMaskedLM")
    version = import_model(settings, str(tmp_path / "bert"), "bert")
    assert (version.task, version.manifest.architecture) == ("fill_mask", "BertForMaskedLM")
    with pytest.raises(
        Unsupported, match=r"bert@1 is a masked language model \(task fill_mask\), which no engine"
    ):
        program(version, settings)
    with pytest.raises(Unsupported, match=r"is a masked language model .*compression to int8-onnx takes"):
        export_onnx(settings, "bert", "int8-onnx", silent)
