"""Other looks of the same picture, a pure function of the pair's number."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from tests.support.pictures import picture, write_pictures
from tests.support.tiny_encoders import write_wordpiece
from train.data.augmenting.options import Augment
from train.data.augmenting.pictures import augmented
from train.data.labelled.image_rows import ImageTextRows
from train.data.options import DataOptions
from train.data.prepare import prepare
from train.data.store import TokenStore, open_store
from train.recipe import TrainRecipe, deciding

CROSS = np.asarray(picture("cross", "red", "yellow"))
ALL = Augment(shift=0.1, zoom=0.2, rotate=20, flip=0.5, colour=0.3, words=0.3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("augment")
    write_wordpiece(folder / "tokenizer")
    options = DataOptions(kind="contrastive", max_tokens=16, image_size=24)
    prepare([write_pictures(folder / "pictures")], folder / "tokenizer", folder / "data", options)
    return open_store(folder / "data" / "train")


def test_nothing_chosen_leaves_it_and_each_number_looks_otherwise() -> None:
    np.testing.assert_array_equal(augmented(CROSS, 7, Augment(), 0), CROSS)
    looks = [augmented(CROSS, number, ALL, 0) for number in range(20)]
    assert len({one.tobytes() for one in looks}) == 20
    np.testing.assert_array_equal(augmented(CROSS, 7, ALL, 0), looks[7])
    assert not np.array_equal(augmented(CROSS, 7, ALL, 1), looks[7])


def test_each_choice_does_what_it_says() -> None:
    half = np.zeros((24, 24, 3), np.uint8)
    half[:, 12:] = 255
    mirrored = {augmented(half, number, Augment(flip=0.5), 0).tobytes() for number in range(20)}
    assert mirrored == {half.tobytes(), half[:, ::-1].tobytes()}
    edges = [
        int((augmented(half, number, Augment(shift=0.25), 0)[5, :, 0] < 128).sum()) for number in range(50)
    ]
    assert min(edges) < 8 and max(edges) > 16 and min(edges) >= 6 and max(edges) <= 18
    dot = np.zeros((24, 24, 3), np.uint8)
    dot[8:16, 8:16] = 255
    sizes = [(augmented(dot, number, Augment(zoom=0.5), 0)[..., 0] > 128).mean() for number in range(50)]
    plain = (dot[..., 0] > 128).mean()
    assert min(sizes) < 0.5 * plain and max(sizes) > 1.7 * plain
    turned = [augmented(half, number, Augment(rotate=90), 0)[2, 12, 0] for number in range(50)]
    assert min(turned) == 0 and max(turned) == 255
    grey = np.full((24, 24, 3), 128, np.uint8)
    tones = np.array([augmented(grey, number, Augment(colour=0.3), 0)[0, 0] for number in range(50)])
    assert tones.min() < 100 and tones.max() > 155 and (np.ptp(tones, axis=1) > 0).any()


def test_a_batch_is_the_same_however_it_is_divided_and_its_keys_are_the_store_s(store: TokenStore) -> None:
    rows, plain = ImageTextRows(store, seed=1, augment=ALL), ImageTextRows(store, seed=1)
    whole, asleep = rows.batch(3, 12), plain.batch(3, 12)
    parts = [rows.batch(3, 6, rank, 2) for rank in (0, 1)]
    np.testing.assert_array_equal(whole["images"], np.concatenate([one["images"] for one in parts]))
    np.testing.assert_array_equal(whole["keys"], asleep["keys"])
    np.testing.assert_array_equal(whole["labels"][:, 0], asleep["labels"][:, 0])
    longest = whole["input_ids"].shape[1]
    for name, nothing in (("input_ids", 0), ("document_ids", -1)):
        padded = [
            np.pad(p[name], ((0, 0), (0, longest - p[name].shape[1])), constant_values=nothing) for p in parts
        ]
        np.testing.assert_array_equal(whole[name], np.concatenate(padded))
    kept = 0
    for row in range(12):
        text = asleep["input_ids"][row][asleep["document_ids"][row] >= 0].tolist()
        thin = whole["input_ids"][row][whole["document_ids"][row] >= 0].tolist()
        assert thin[0] == text[0] and thin[-1] == text[-1] and len(thin) >= 2
        rest = iter(text)
        assert all(one in rest for one in thin), "in their order"
        kept += len(thin)
    assert 0.5 < kept / (asleep["document_ids"] >= 0).sum() < 0.95
    assert not np.array_equal(whole["images"], asleep["images"])
    held = ImageTextRows(store, seed=None, augment=ALL).batch(0, 4)
    np.testing.assert_array_equal(held["images"], ImageTextRows(store, seed=None).batch(0, 4)["images"])


def test_recipes_say_it_and_older_ones_are_as_before() -> None:
    said = {
        "architecture": {"family": "clip", "layers": 1, "hidden": 32, "heads": 2},
        "data": {"train": ["a.jsonl"]},
    }
    plain = deciding(TrainRecipe.model_validate(said).model_dump(mode="json"))
    assert not any(key.startswith("contrastive") for key in plain)
    chosen = TrainRecipe.model_validate({**said, "contrastive": {"augment": {"flip": 0.5}}})
    assert deciding(chosen.model_dump(mode="json"))["contrastive.augment.flip"] == 0.5
    with pytest.raises(ValidationError, match="contrastive sets up objective: contrastive"):
        TrainRecipe.model_validate(
            {"architecture": {"layers": 1, "hidden": 32, "heads": 2}, "data": {"train": ["a.jsonl"]},
             "contrastive": {"augment": {}}}
        )  # fmt: skip
    with pytest.raises(ValidationError, match=r"less than or equal to 0\.5"):
        Augment(shift=0.6)
