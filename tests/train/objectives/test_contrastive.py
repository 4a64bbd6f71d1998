"""Contrastive learning of images and texts: the whole step's pairs compared, however they are divided."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from everlearn.errors import InvalidInput
from tests.support.pictures import picture, write_pictures
from tests.support.processes import in_ranks
from tests.support.tiny_encoders import write_wordpiece
from train.data.labelled.image_rows import ImageTextRows
from train.data.options import DataOptions
from train.data.prepare import prepare
from train.data.store import open_store
from train.errors import Stopped
from train.launch import Outcome, launch, open_run
from train.objectives.contrastive import Contrastive, RecallJudge, features, pixel_values, ranked
from train.recipe import TrainRecipe
from train.run import train

ROWS = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared pairs of pictures."""
    folder = tmp_path_factory.mktemp("pairs")
    write_wordpiece(folder / "tokenizer")
    options = DataOptions(kind="contrastive", max_tokens=16, image_size=24, held_fraction=0.2)
    prepare([write_pictures(folder / "pictures")], folder / "tokenizer", folder / "data", options)
    return folder / "data"


def tiny_clip() -> CLIPModel:
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 600, "max_position_embeddings": 16, "eos_token_id": 3, "pad_token_id": 0}
    config = CLIPConfig(
        text_config={**tower, **text, "bos_token_id": 2},
        vision_config={**tower, "image_size": 24, "patch_size": 6},
        projection_dim=16,
    )
    return CLIPModel(config)


def tensors(batch: Any) -> dict[str, torch.Tensor]:
    return {key: torch.as_tensor(value) for key, value in batch.items()}


def gradients(store: Path, micro_batch: int, ranks: int = 1) -> dict[str, Any]:
    """Of the step's loss per pair; float64, so that nothing but the arithmetic's own order is left."""
    from train.parallel.group import joined

    with joined("ddp" if ranks > 1 else "none") as group:
        model = tiny_clip().double()
        module = group.wrap(model)
        batch = tensors(
            ImageTextRows(open_store(store), seed=1).batch(0, ROWS // ranks, group.rank, group.ranks)
        )
        loss, count = module(Contrastive(micro_batch), batch)
        loss.backward()
        total, pairs = group.sum([loss, count])
        assert pairs == ROWS
        made = {name: (each.grad * ranks / pairs).numpy() for name, each in model.named_parameters()}
        return {"loss": np.array(total / pairs), **made}


def test_two_ranks_one_batch_and_small_chunks_give_the_same_gradient(data: Path) -> None:
    one = gradients(data / "train", ROWS)
    assert all(np.abs(gradient).max() > 0 for gradient in one.values())
    small = gradients(data / "train", 3)
    shared, other = in_ranks(2, gradients, data / "train", 4, 2)
    for made in (small, shared, other):
        assert made.keys() == one.keys()
        for name, gradient in one.items():
            assert np.abs(made[name] - gradient).max() <= 1e-5 * max(np.abs(gradient).max(), 1e-3), name


def test_the_loss_is_that_of_transformers(data: Path) -> None:
    model = tiny_clip()
    batch = tensors(ImageTextRows(open_store(data / "train"), seed=1).batch(0, ROWS))
    loss, count = Contrastive(5)(model, batch)
    mask = (batch["document_ids"] >= 0).long()
    theirs = model(batch["input_ids"], pixel_values(batch["images"]), mask, return_loss=True)
    assert (loss / count).item() == pytest.approx(theirs.loss.item(), rel=1e-5)


def test_the_same_picture_twice_in_a_step_is_no_wrong_answer(data: Path) -> None:
    model, rows = tiny_clip(), ImageTextRows(open_store(data / "train"), seed=1)
    alone, once, twice = (
        Contrastive(8)(model, tensors(rows.rows_of(numbers)))[0].item()
        for numbers in ([4, 4], [4, 5], [4, 5, 4])
    )
    assert alone == pytest.approx(0, abs=1e-6)
    assert once > 0.1
    assert twice > once


def test_rows_that_do_not_count_are_neither_asked_nor_answers(data: Path) -> None:
    model, rows = tiny_clip(), ImageTextRows(open_store(data / "train"), seed=1)
    part, whole = tensors(rows.batch(0, 5)), tensors(rows.batch(0, 8))
    whole["labels"][5:] = -100
    judge = RecallJudge(Contrastive(8))
    expected, measured = judge.predictions(model, part), judge.predictions(model, whole)
    assert measured[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert len(measured[2]) == float(measured[1]) == 5
    np.testing.assert_allclose(measured[2].detach(), expected[2].detach(), atol=1e-6)


def test_padding_is_seen_by_nobody(data: Path) -> None:
    model, rows = tiny_clip().eval(), ImageTextRows(open_store(data / "train"), seed=1)
    batch = tensors(rows.batch(0, 4))
    longer = batch | {
        key: torch.nn.functional.pad(batch[key], (0, 1), value=fill)
        for key, fill in (("input_ids", 0), ("document_ids", -1))
    }
    torch.testing.assert_close(features(model, batch, 4), features(model, longer, 4), atol=1e-6, rtol=0)


def test_the_temperature_stays_below_a_hundred(data: Path) -> None:
    model = tiny_clip()
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    Contrastive(8)(model, tensors(ImageTextRows(open_store(data / "train")).batch(0, 8)))
    assert model.logit_scale.exp().item() == pytest.approx(100)
    assert model.logit_scale.item() <= math.log(100) + 1e-6


def test_recall_counts_ties_against_it_and_equal_pictures_for_it() -> None:
    axes = np.eye(4, dtype=np.float32)
    keys = np.arange(8, dtype=np.float64).reshape(4, 2)
    assert ranked(axes, axes, keys).tolist() == [0, 0, 0, 0]
    alike = np.ones((4, 4), dtype=np.float32)
    assert ranked(alike, alike, keys).tolist() == [3, 3, 3, 3]  # a model that has collapsed finds nothing
    swapped = axes[[1, 0, 2, 3]] + 0.1 * axes
    assert ranked(axes, swapped, keys).tolist() == [1, 1, 0, 0]
    same = keys.copy()
    same[1, 0] = same[0, 0]  # the first two are one picture
    assert ranked(axes, swapped, same).tolist() == [0, 0, 0, 0]


RECIPE = {
    "architecture": {
        "family": "clip",
        "layers": 2,
        "hidden": 32,
        "heads": 2,
        "context": 16,
        "projection": 16,
        "images": {"size": 24, "patch": 6},
    },
    "sequence_tokens": 16,
    "batch_tokens": 512,
    "micro_batch": 8,
    "steps": 40,
    "optimizer": {"lr": 3e-3},
    "dtype": "float32",
    "threads": 1,
    "checkpoint": {"every_s": 1e9},
}


def trained(folder: Path, run_dir: Path, **changes: Any) -> Outcome:
    data = {"train": [str(folder / "pictures" / "metadata.jsonl")], "held_fraction": 0.2}
    recipe = TrainRecipe.model_validate({**RECIPE, "data": data, **changes})
    return launch(recipe, model_dir=None, tokenizer_dir=folder / "tokenizer", run_dir=run_dir)


def test_from_pictures_to_a_model_that_transformers_opens(data: Path, tmp_path: Path) -> None:
    outcome = trained(data.parent, tmp_path / "run")
    for name in ("image_to_text", "text_to_image"):
        assert outcome.metrics[f"held_{name}_recall_at_1_before"] < 0.35
        assert outcome.metrics[f"held_{name}_recall_at_5"] > 0.8
    assert outcome.metrics["held_nll"] < 0.7 * outcome.metrics["held_nll_before"]
    model = CLIPModel.from_pretrained(outcome.directory)
    tokenizer = AutoTokenizer.from_pretrained(outcome.directory)
    images = [picture("circle", "red", "blue"), picture("square", "yellow", "black")]
    processor = CLIPImageProcessorPil.from_pretrained(outcome.directory)
    texts = tokenizer(
        ["a red circle on blue ground", "a yellow square on black ground"], padding=True, return_tensors="pt"
    )
    said = model(
        texts["input_ids"],
        processor(images, return_tensors="pt")["pixel_values"],
        texts["attention_mask"],
    )
    assert said.logits_per_image.argmax(1).tolist() == [0, 1]
    assert "CLIPModel" in model.config.architectures


def in_process(
    data: Path, run_dir: Path, stop_after: int | None = None, base: Path | None = None, **changes: Any
) -> Path:
    """Trains on the prepared store, and returns where the model is."""
    stores = {"store": str(data / "train"), "held_store": str(data / "held")}
    recipe = TrainRecipe.model_validate({**RECIPE, "steps": 6, "data": stores, **changes})
    run_dir.mkdir(exist_ok=True)
    open_run(recipe, base, data.parent / "tokenizer", run_dir, {})
    steps: list[int] = []
    if stop_after:
        with pytest.raises(Stopped):
            train(run_dir, lambda report: steps.append(report.step), lambda: len(steps) + 1 >= stop_after)
    else:
        train(run_dir, lambda report: None, lambda: False)
    return run_dir / "model"


def test_a_stopped_run_goes_on_to_the_same_bits_and_can_be_a_base(data: Path, tmp_path: Path) -> None:
    whole = in_process(data, tmp_path / "whole")
    in_process(data, tmp_path / "parts", stop_after=3)
    parts = in_process(data, tmp_path / "parts")
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    before = CLIPModel.from_pretrained(whole).state_dict()
    further = {"architecture": None, "objective": "contrastive", "steps": 2, "dropout": 0.1}
    for changes in ({}, {"tune": {"method": "lora", "rank": 2}}):
        made = in_process(data, tmp_path / f"more{len(changes)}", base=whole, **further, **changes)
        after = CLIPModel.from_pretrained(made)
        assert after.config.vision_config.attention_dropout == 0.1
        changed = {name for name, each in after.state_dict().items() if not torch.equal(each, before[name])}
        assert any("q_proj.weight" in name for name in changed)
        assert ("text_model.final_layer_norm.weight" in changed) == (not changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"parallel": "fsdp2"}, "ddp would do"),
        ({"objective": "causal-lm"}, "the family clip is a model of images and texts"),
        ({"data": {"train": ["a.jsonl"], "kind": "embedding"}}, "learns from contrastive"),
        (
            {"architecture": RECIPE["architecture"] | {"images": {"size": 24, "patch": 7}}},
            "multiple of patch",
        ),
        ({"architecture": RECIPE["architecture"] | {"images": {"hidden": 33}}}, "multiple of images.heads"),
        ({"architecture": RECIPE["architecture"] | {"tokenizer": "bpe"}}, "the mark behind it"),
        ({"architecture": RECIPE["architecture"] | {"family": "bert"}}, "bert sees no images"),
    ],
)
def test_recipes_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainRecipe.model_validate({**RECIPE, "data": {"train": ["a.jsonl"]}, **changes})


def test_pictures_of_another_size_are_refused(data: Path, tmp_path: Path) -> None:
    changed = RECIPE["architecture"] | {"images": {"size": 32, "patch": 8}}
    with pytest.raises(InvalidInput, match="have 24 pixels a side, and the model sees 32"):
        in_process(data, tmp_path / "run", architecture=changed)
