"""Pairs of images and texts, from files to a store: what is read, what is refused, and what a changed picture changes."""

from __future__ import annotations

import base64
import json
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from everlearn.errors import Conflict, InvalidInput
from everlearn.images import pixels
from tests.support.pictures import picture, write_pictures
from train.data.labelled.image_rows import ImageTextRows
from train.data.options import DataOptions
from train.data.prepare import prepare
from train.data.reading.read import read_examples
from train.data.store import open_store
from train.data.tokenize import Tokens

OPTIONS = DataOptions(kind="contrastive", max_tokens=16, image_size=24)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def png(form: str = "circle", colour: str = "red", ground: str = "blue") -> bytes:
    stream = BytesIO()
    picture(form, colour, ground).save(stream, "png")
    return stream.getvalue()


def write(file: Path, *records: Any) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_a_folder_becomes_pixels_beside_tokens_and_the_same_picture_is_on_one_side(
    pictures: Path, wordpiece: Path, tmp_path: Path
) -> None:
    again = [json.loads(line) | {"text": "said in other words"} for line in pictures.open()]
    folder = write_pictures(tmp_path / "folder").parent
    write(folder / "other.jsonl", *again)
    card = prepare([folder], wordpiece, tmp_path / "out", OPTIONS.model_copy(update={"held_fraction": 0.2}))
    assert (card.read, card.train.examples + card.held.examples, card.skipped) == (180, 180, {})
    sides = {}
    for name in ("train", "held"):
        store = open_store(tmp_path / "out" / name, verify=True)
        lines = [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").open()]
        for example, line in zip(store, lines, strict=True):
            file = line["source"].rpartition(":")[0]
            if file == "metadata.jsonl":
                _, colour, form, _, ground, _ = line["text"].split()
                np.testing.assert_array_equal(example.image, np.asarray(picture(form, colour, ground)))
                assert Tokens(wordpiece).decode(example) == f"[CLS] {line['text']} [SEP]"
            sides.setdefault(line["image"], set()).add(name)
    assert len(sides) == 90
    assert all(len(where) == 1 for where in sides.values())


def test_every_way_to_give_a_picture_gives_the_same_one(tmp_path: Path) -> None:
    content = png()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.png").write_bytes(content)
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    write(
        tmp_path / "a.jsonl",
        {"image": "below/a.png", "text": "a"},
        {"image": url, "text": "a"},
        {"file_name": "below/a.png", "caption": "a"},
    )
    (tmp_path / "b.csv").write_text("image,text\nbelow/a.png,a\n")
    image = {"bytes": content, "path": None}
    table = pyarrow.table({"image": [image, {"bytes": None, "path": "below/a.png"}], "text": ["a", "a"]})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    found = [
        each
        for name in ("a.jsonl", "b.csv", "c.parquet")
        for each in read_examples(tmp_path / name, kind="contrastive")
    ]
    assert len(found) == 6
    assert {each.sha256 for each in found} == {found[0].sha256}
    assert {each.image for each in found} == {content}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "record, message",
    [
        ({"image": "../secret.png", "text": "a"}, "leaves the folder of the records"),
        ({"image": "link.png", "text": "a"}, "leaves the folder of the records"),
        ({"image": "/etc/passwd", "text": "a"}, "leaves the folder of the records"),
        ({"image": "none.png", "text": "a"}, "there is no such file"),
        ({"image": ".", "text": "a"}, "there is no such file"),
        ({"image": "x" * 5000, "text": "a"}, "cannot be read"),
        ({"image": "a\0b", "text": "a"}, "cannot be read"),
        ({"image": "https://example.com/a.png", "text": "a"}, "nothing is fetched"),
        ({"image": "data:text/html;base64,AAAA", "text": "a"}, "is no image"),
        ({"image": "data:image/png;base64,!", "text": "a"}, "is no base64"),
        ({"image": 7, "text": "a"}, '"image" names no picture'),
        ({"image": "whole.png", "text": " "}, '"text" is empty'),
        ({"image": "broken.png", "text": "a"}, "is broken"),
        ({"image": "prose.png", "text": "a"}, "is no image"),
        ({"image": "empty.png", "text": "a"}, "is empty"),
    ],
)
def test_bad_pictures_are_refused_by_file_and_line(
    wordpiece: Path, tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "whole.png").write_bytes(png())
    (folder / "broken.png").write_bytes(png()[:-40])
    (folder / "prose.png").write_text("I am no picture, whatever I am called.")
    (folder / "empty.png").touch()
    write(folder / "pairs.jsonl", {"image": "whole.png", "text": "a"}, record)
    with pytest.raises(InvalidInput, match=message) as error:
        prepare([folder / "pairs.jsonl"], wordpiece, tmp_path / "out", OPTIONS)
    assert error.value.message.startswith("pairs.jsonl:2: ")
    assert sorted(os.listdir(tmp_path)) == ["data", "secret.png"]  # nothing half-written stays


def test_a_changed_picture_is_other_data(wordpiece: Path, tmp_path: Path) -> None:
    file = write_pictures(tmp_path / "data")
    first = prepare([file], wordpiece, tmp_path / "out", OPTIONS)
    assert prepare([file], wordpiece, tmp_path / "out", OPTIONS) == first
    (tmp_path / "data" / "circle-red-blue.png").write_bytes(png("cross"))
    with pytest.raises(Conflict, match="prepared from other files"):
        prepare([file], wordpiece, tmp_path / "out", OPTIONS)
    second = prepare([file], wordpiece, tmp_path / "other", OPTIONS)
    assert second.sources[0].sha256 == first.sources[0].sha256
    assert second.sources[0].images_sha256 != first.sources[0].images_sha256


def test_a_killed_preparation_goes_on_with_what_it_had_read(wordpiece: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    whole = prepare([write_pictures(data)], wordpiece, tmp_path / "whole", OPTIONS)
    write(data / "late.jsonl", {"image": "late.png", "text": "comes later"})

    def killed(message: str, fraction: float | None) -> None:
        if message.startswith("tokenizing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([data / "metadata.jsonl"], wordpiece, tmp_path / "out", OPTIONS, killed)
    assert not (tmp_path / "out").exists()
    read = next((tmp_path / ".out.preparing").glob("*/images.bin")).stat()
    assert read.st_size == 90 * 24 * 24 * 3
    assert prepare([data / "metadata.jsonl"], wordpiece, tmp_path / "out", OPTIONS) == whole
    for name in ("train/images.bin", "train/tokens.bin", "held/images.bin"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_batches_are_the_same_on_any_number_of_ranks(pictures: Path, wordpiece: Path, tmp_path: Path) -> None:
    prepare([pictures], wordpiece, tmp_path / "out", OPTIONS)
    rows = ImageTextRows(open_store(tmp_path / "out" / "train"), seed=3)
    whole = rows.batch(5, 8)
    halves = [rows.batch(5, 4, rank, 2) for rank in (0, 1)]
    for key in ("images", "keys", "labels"):
        joined = np.concatenate([half[key][:, :1] if key == "labels" else half[key] for half in halves])
        np.testing.assert_array_equal(whole[key][:, :1] if key == "labels" else whole[key], joined)
    assert len({tuple(key) for key in whole["keys"].tolist()}) == 8
    epoch = {int(n) for step in range(rows.rows) for n in rows.batch(step, 1)["document_ids"][:, 0]}
    assert epoch == set(range(rows.rows))


def test_pixels_are_those_of_transformers_processor(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessorPil

    image = picture("cross", "purple", "yellow", 61).crop((0, 0, 61, 40))
    stream = BytesIO()
    image.save(stream, "png")
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)
    theirs = processor(image, do_normalize=False, do_rescale=False)["pixel_values"][0]
    ours = pixels(stream.getvalue(), 24)
    np.testing.assert_array_equal(np.transpose(theirs, (1, 2, 0)), ours)
