"""Embeddings of a real int8 encoder through the stock `openai` client."""

import base64
import math
import struct

import openai
import pytest

pytestmark = pytest.mark.slow

SENTENCES = [
    "The cat sits on the warm windowsill.",
    "A kitten is resting by the sunny window.",
    "The central bank raised interest rates by half a point.",
]


def embed(client: openai.OpenAI, texts: list[str]) -> list[list[float]]:
    answer = client.embeddings.create(model="minilm", input=texts, encoding_format="float")
    assert [item.index for item in answer.data] == list(range(len(texts)))
    return [item.embedding for item in answer.data]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_near_meanings_lie_near(client: openai.OpenAI) -> None:
    cat, kitten, bank = embed(client, SENTENCES)
    assert len(cat) == 384 and math.isclose(math.hypot(*cat), 1, abs_tol=1e-3)
    assert cosine(cat, kitten) > 0.5
    assert cosine(cat, bank) < 0.2


def test_a_text_means_the_same_alone_and_in_a_batch(client: openai.OpenAI) -> None:
    """Nearly: dynamic int8 takes one scale for the activations of a whole batch."""
    together = embed(client, [*SENTENCES, "word " * 200])
    for text, batched in zip(SENTENCES, together, strict=False):
        assert cosine(embed(client, [text])[0], batched) > 0.97


def test_base64_and_floats_are_the_same_numbers(client: openai.OpenAI) -> None:
    [floats] = embed(client, SENTENCES[:1])
    raw = client.embeddings.with_raw_response.create(
        model="minilm", input=SENTENCES[0], encoding_format="base64"
    )
    encoded = raw.http_response.json()["data"][0]["embedding"]
    numbers = struct.unpack("<384f", base64.b64decode(encoded))
    assert numbers == pytest.approx(floats, abs=1e-6)


def test_the_client_asks_for_base64_by_itself(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="minilm", input="hello")
    assert len(answer.data[0].embedding) == 384
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 3


def test_a_chat_model_gives_no_embeddings(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="smollm2", input="hello")
