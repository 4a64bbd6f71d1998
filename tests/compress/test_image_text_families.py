"""CLIP's kinds of towers: both graphs have torch's embeddings, alone and beside any padding, and say what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from compress.image_text import drawn, image_feeds, load_towers, text_feeds
from compress.measure.parity import Drifted
from compress.targets import onnx_image_text
from compress.targets.architectures import ONNX_IMAGE_TEXT, refuse_architecture
from compress.targets.onnx_image_text import build_onnx_image_text, preprocessing, session_embeds
from everlearn.errors import EverlearnError, InvalidInput, Unsupported
from everlearn.progress import silent
from tests.compress.targets.architecture_table import PAGE
from tests.support.tiny_models import write_encoder_tokenizer
from train.models.image_text import MEAN, STD

TEXT: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 40, "bos_token_id": 1, "eos_token_id": 5, "pad_token_id": 0,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "read at the mark": (TEXT, VISION),
    "read at the largest id, as the first models": (TEXT | {"eos_token_id": 2}, VISION),
    "plain GELU": (TEXT | {"hidden_act": "gelu"}, VISION | {"hidden_act": "gelu"}),
}


def write_clip(folder: Path, kind: str) -> None:
    """With weights so large that errors show."""
    torch.manual_seed(0)
    text, vision = KINDS[kind]
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    with torch.no_grad():
        for name, one in model.named_parameters():
            if one.ndim == 2 and "proj" in name:
                one.mul_(4)
    model.save_pretrained(folder)
    write_encoder_tokenizer(folder)


def request(model_dir: Path, directory: Path, **more: Any) -> dict[str, Any]:
    directory.mkdir(exist_ok=True)
    asked = {"model_dir": str(model_dir), "directory": str(directory), "precision": "fp32", "calibration": {}}
    return asked | more


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_have_torchs_embeddings_of_any_length_and_number(kind: str, tmp_path: Path) -> None:
    write_clip(tmp_path, kind)
    build_onnx_image_text(request(tmp_path, tmp_path / "made"), silent)
    towers = load_towers(tmp_path)
    made = session_embeds((tmp_path / "made/text_model.onnx", tmp_path / "made/vision_model.onnx"), towers)
    random = np.random.default_rng(0)
    texts = [[1, *random.integers(6, 512, length).tolist(), 5] for length in (0, 3, 20, 37)]
    for some in (texts, texts[1:2]):
        (feeds,) = text_feeds(some)
        np.testing.assert_allclose(made[0](feeds), towers[0].embed(feeds), atol=1e-5)
    alone = np.concatenate([made[0](text_feeds([one])[0]) for one in texts])
    np.testing.assert_allclose(made[0](text_feeds(texts)[0]), alone, atol=1e-5)
    images = np.stack([drawn(number, 32) for number in range(100, 105)])
    for some in (images, images[:1]):
        (feeds,) = image_feeds(some, MEAN, STD)
        np.testing.assert_allclose(made[1](feeds), towers[1].embed(feeds), atol=1e-5)
        assert np.linalg.norm(made[1](feeds), axis=1) == pytest.approx(1, abs=1e-5)


def test_int8_is_measured_and_another_graph_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "clip", "read at the mark")
    made = build_onnx_image_text(request(tmp_path / "clip", tmp_path / "int8", precision="int8"), silent)
    metrics = made["metrics"]
    assert 0.95 < metrics["cosine_min"] < 0.99999
    assert metrics["dimensions"] == 24 and metrics["images"] > 8
    assert made["calibration_seen"]["images"] > 8

    real = onnx_image_text.trace

    def other(tower: Any, graph: Path, example: Any) -> None:
        tower.projection.weight.data[0] *= -1
        real(tower, graph, example)

    monkeypatch.setattr(onnx_image_text, "trace", other)
    with pytest.raises(Drifted, match="of the graphs in float32 has cosine"):
        build_onnx_image_text(request(tmp_path / "clip", tmp_path / "made"), silent)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"do_center_crop": False}, "do_center_crop: False"),
        ({"size": {"height": 32, "width": 32}}, "size: "),
        ({"size": 64}, "size: "),
        ({"resample": 2}, "resample: 2"),
        ({"rescale_factor": 0.5}, "rescale_factor: 0.5"),
    ],
)
def test_images_that_are_read_otherwise_are_refused(said: dict[str, Any], what: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"image_size": 32}}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(Unsupported, match=f"preprocessor_config.json says {what}"):
        preprocessing(tmp_path)


def test_older_spellings_of_the_processor_are_understood(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"image_size": 32}}))
    old = {
        "size": 32,
        "crop_size": 32,
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "rescale_factor": 0.00392156862745098,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    said = preprocessing(tmp_path)
    assert said["image_mean"] == [0.5, 0.5, 0.5] and said["image_std"] == list(STD)
    assert said["crop_size"] == {"height": 32, "width": 32} and said["size"] == {"shortest_edge": 32}


def test_what_cannot_be_made_says_why(tmp_path: Path) -> None:
    clip = {"architectures": ["CLIPModel"], "model_type": "clip"}
    with pytest.raises(EverlearnError, match="int8-onnx or fp32-onnx"):
        refuse_architecture(clip, "image_text", "int4-onnx")
    with pytest.raises(Unsupported, match="no test compares graphs of siglip"):
        refuse_architecture(
            {"architectures": ["SiglipModel"], "model_type": "siglip"}, "image_text", "int8-onnx"
        )
    write_clip(tmp_path, "read at the mark")
    (tmp_path / "words.txt").write_text("words")
    calibration = {"text": str(tmp_path / "words.txt")}
    with pytest.raises(InvalidInput, match="calibrated on a store of pairs, with images of 32 pixels"):
        build_onnx_image_text(request(tmp_path, tmp_path / "made", calibration=calibration), silent)


def test_the_page_names_them() -> None:
    part = PAGE.read_text().partition("## Images and texts")[2]
    assert all(f"`{name}`" in part for name in ONNX_IMAGE_TEXT)
