"""A model of images and texts behind the gateway: trained, registered, compressed, served, and asked as OpenAI's, vLLM's
and Jina's clients do."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from openai.types import CreateEmbeddingResponse
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from compress.export import export
from compress.recipe import CompressRecipe
from everlearn.progress import shown
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from serve.gateway.limits.cost import expected
from serve.protocol.embeddings import EmbeddingRequest
from serve.protocol.parsing import parse
from tests.support.pictures import picture, write_pictures
from tests.support.serve.browser import IN_A_BROWSER, Driver, Window
from tests.support.serve.supervised import REAL, Supervised, eventually, supervised
from train.evaluate.held_out_text import held_out_text
from train.recipe import TrainRecipe
from train.runs.live_view import live_view
from train.runs.registered import train_registered

SHOWN = [("circle", "red", "blue"), ("square", "yellow", "black"), ("cross", "green", "purple")]
CAPTIONS = [f"a {colour} {form} on {ground} ground" for form, colour, ground in SHOWN]


def write_more_captions(file: Path) -> Path:
    """Each picture once more, with words behind its caption: a tokenizer has more to learn from them."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    words = held_out_text().text.split()
    for at, one in enumerate(list(records)):
        records.append({**one, "text": f"{one['text']} {' '.join(words[4 * at : 4 * at + 4])}"})
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    return file


def recipe(pictures: Path) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {
            "name": "pictures",
            "architecture": {
                "family": "clip",
                "layers": 2,
                "hidden": 32,
                "heads": 2,
                "context": 16,
                "vocab": 300,
                "projection": 16,
                "images": {"size": 24, "patch": 6},
            },
            "data": {"train": [str(pictures)], "held_fraction": 0.2},
            "sequence_tokens": 16,
            "batch_tokens": 512,
            "micro_batch": 32,
            "steps": 25,
            "optimizer": {"lr": 3e-3},
            "dtype": "float32",
            "threads": 1,
        }
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """With version 1, trained, and version 2, compressed with the run's own pairs."""
    folder = tmp_path_factory.mktemp("image-text")
    settings = Settings(home=folder / "home")
    pictures = write_more_captions(write_pictures(folder / "pictures"))
    train_registered(
        recipe(pictures),
        Registry(settings),
        settings.home / "runs",
        folder / "run",
        hashing_view=shown,
        training_view=live_view,
        say=print,
    )
    store = {"store": folder / "run" / "data" / "train"}
    export(settings, "pictures", CompressRecipe.model_validate({"to": "int8-onnx", "calibration": store}))
    return settings


@pytest.fixture(scope="module")
def server(settings: Settings) -> Iterator[Supervised]:
    with supervised(settings.home, "pictures", command=REAL, EVERLEARN_ONNX__THREADS="1") as running:
        yield running.ready(within_s=300)


@pytest.fixture(scope="module")
def client(server: Supervised) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def wanted(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """transformers' own vectors of CAPTIONS and SHOWN, by the version before it was compressed."""
    registry = Registry(settings)
    folder = registry.path(registry.resolve("pictures@1"))
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    images = processor([picture(*one) for one in SHOWN], return_tensors="pt")
    with torch.no_grad():
        said = model(texts["input_ids"], images["pixel_values"], texts["attention_mask"])
    return said.text_embeds.numpy(), said.image_embeds.numpy()


def encoded(shown: tuple[str, str, str], format: str = "PNG") -> str:
    file = io.BytesIO()
    picture(*shown).save(file, format)
    return base64.b64encode(file.getvalue()).decode()


def data_url(shown: tuple[str, str, str], format: str = "PNG") -> str:
    return f"data:image/{format.lower()};base64,{encoded(shown, format)}"


def vectors(answer: CreateEmbeddingResponse) -> np.ndarray:
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return np.array([one.embedding for one in answer.data])


def test_the_version_says_what_its_bits_cost(settings: Settings) -> None:
    version = Registry(settings).resolve("pictures@2")
    assert (version.format, version.task) == ("onnx", "image_text")
    metrics = version.manifest.metrics
    assert metrics["cosine_min"] > 0.95
    for way in ("image_to_text", "text_to_image"):
        before, after = metrics[f"{way}_recall_at_1_before"], metrics[f"{way}_recall_at_1"]
        assert before > 0.1 and abs(before - after) < 0.2


def test_texts_and_images_get_the_vectors_that_transformers_gives_them(
    client: openai.OpenAI, wanted: tuple[np.ndarray, np.ndarray]
) -> None:
    inputs: list[Any] = [*CAPTIONS, *({"image": data_url(one)} for one in SHOWN)]
    answer = client.embeddings.create(model="pictures", input=inputs)
    found = vectors(answer)
    assert found.shape == (6, 16) and np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    assert ((found[:3] * wanted[0]).sum(1) > 0.99).all()
    assert ((found[3:] * wanted[1]).sum(1) > 0.99).all()
    assert (found[:3] @ found[3:].T).argmax(1).tolist() == [0, 1, 2]
    texts = client.embeddings.create(model="pictures", input=CAPTIONS, encoding_format="float")
    np.testing.assert_allclose(vectors(texts), found[:3], atol=0.02)
    assert answer.usage.prompt_tokens == texts.usage.prompt_tokens + 3 * 17


def test_images_are_sent_as_vllm_and_jina_spell_them(client: openai.OpenAI) -> None:
    def messages(content: Any) -> np.ndarray:
        body = {"model": "pictures", "messages": [{"role": "user", "content": content}]}
        return vectors(client.post("/embeddings", cast_to=CreateEmbeddingResponse, body=body))[0]

    mixed: list[Any] = [{"image": encoded(SHOWN[0])}, {"text": CAPTIONS[0]}, CAPTIONS[1]]
    jina = vectors(client.embeddings.create(model="pictures", input=mixed, extra_body={"normalized": True}))
    image = messages([{"type": "image_url", "image_url": {"url": data_url(SHOWN[0]), "detail": "auto"}}])
    np.testing.assert_allclose(image, jina[0], atol=0.02)
    np.testing.assert_allclose(messages([{"type": "text", "text": CAPTIONS[0]}]), jina[1], atol=0.02)
    np.testing.assert_allclose(messages(CAPTIONS[1]), jina[2], atol=0.02)
    lossless: list[Any] = [{"image": data_url(SHOWN[0], kind)} for kind in ("BMP", "GIF", "PNG")]
    same = vectors(client.embeddings.create(model="pictures", input=lossless))
    np.testing.assert_allclose(same, np.tile(same[2], (3, 1)), atol=0.02)


def huge(width: int, height: int) -> str:
    """A PNG of a few hundred bytes that says it is so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(300))) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + head + body).decode()


def cut(shown: tuple[str, str, str]) -> str:
    whole = base64.b64decode(encoded(shown))
    return base64.b64encode(whole[: len(whole) // 2]).decode()


TEXT = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode()


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("https://example.com/cat.png", "Nothing is fetched"),
        ("file:///etc/passwd", "Nothing is fetched"),
        ("data:text/html;base64,PGI+", "is no image"),
        ("data:image/png;base64,####", "is no base64"),
        ("", "is empty"),
        (TEXT, "is no image"),
        (cut(SHOWN[0]), "is broken"),
        (huge(20_000, 20_000), "has more than 40000000 pixels"),
        (huge(6_000, 3), "a strip"),
    ],
    ids=lambda value: value[:12],
)
def test_bad_images_are_refused_with_one_clear_error(server: Supervised, image: str, says: str) -> None:
    part = {"type": "image_url", "image_url": {"url": image}}
    place = "messages[0].content[0].image_url.url"
    for param, body in (
        ("input[1].image", {"input": ["a circle", {"image": image}]}),
        (place, {"messages": [{"role": "user", "content": [part]}]}),
    ):
        response = httpx.post(f"{server.url}/v1/embeddings", json={"model": "pictures", **body}, timeout=60)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["param"] == param and says in error["message"], error


def test_many_large_images_are_refused_before_any_is_decoded(server: Supervised) -> None:
    inputs = [{"image": huge(4_000, 4_000)}] * 3
    response = httpx.post(
        f"{server.url}/v1/embeddings", json={"model": "pictures", "input": inputs}, timeout=60
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "input[2].image"
    assert "have 48000000 pixels; at most 40000000 per request" in response.text


def test_an_image_costs_its_patches_before_it_is_counted_not_its_bytes() -> None:
    body = json.dumps({"model": "pictures", "input": ["a circle", {"image": "A" * 1_000_000}]}).encode()
    assert expected(parse(EmbeddingRequest, body), len(body)).tokens < 300
    words = json.dumps({"model": "pictures", "input": ["word " * 1000]}).encode()
    assert expected(parse(EmbeddingRequest, words), len(words)).tokens > 1000


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": "a", "messages": [{"role": "user", "content": "b"}]}, "input"),
        ({"messages": [{"role": "user", "content": "b"}] * 2}, "messages"),
        ({"messages": [{"role": "system", "content": "b"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0].type",
        ),
        ({"input": [{"image": "", "text": "both"}]}, "input[0].text"),
        ({"input": [{"video": "x"}]}, "input[0].video"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": "word " * 200}, "input"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_its_name(server: Supervised, body: Any, param: str) -> None:
    response = httpx.post(f"{server.url}/v1/embeddings", json={"model": "pictures", **body}, timeout=60)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param, response.text


class TestPlayground:
    pytestmark = IN_A_BROWSER

    def test_shows_the_captions_nearest_to_an_image(
        self, server: Supervised, browser: Driver, tmp_path: Path
    ) -> None:
        from selenium.webdriver.common.keys import Keys

        picture(*SHOWN[1], size=600).save(tmp_path / "square.png")  # larger than what is sent
        (tmp_path / "broken.png").write_bytes(b"no image")
        (tmp_path / "words.txt").write_text("no image")
        page = Window(browser, f"{server.url}/")
        page.load()
        eventually(lambda: page.one("#image-field").is_displayed())
        page.one("#prompt").send_keys(*(f"{one}{Keys.SHIFT}{Keys.ENTER}{Keys.SHIFT}" for one in CAPTIONS))
        page.one("#prompt").send_keys(Keys.ENTER)
        assert page.one("#image-fault").text == "Choose an image first." and not page.all(".answer")
        for name, fault in (("words.txt", "can be read"), ("broken.png", "is broken")):
            page.one("#image-file").send_keys(str(tmp_path / name))
            eventually(lambda fault=fault: fault in page.one("#image-fault").text)
        page.one("#image-file").send_keys(str(tmp_path / "square.png"))
        eventually(lambda: page.one("#image-shown").is_displayed() and page.focused() == "prompt")
        page.one("#prompt").send_keys(Keys.ENTER)
        eventually(lambda: page.all(".answer") and not page.all(".working"))
        shown = page.texts(".answer .bar-label")
        assert sorted(shown) == sorted(CAPTIONS) and shown[0] == CAPTIONS[1]
        assert page.one(".user img").is_displayed() and page.one(".fault").text == ""
        assert page.one("#prompt").get_attribute("value").startswith(CAPTIONS[0])
        assert page.problems() == []
