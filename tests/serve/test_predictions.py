"""Encoders with heads behind the gateway: compressed, served, and asked as vLLM's, Jina's, Cohere's and Hugging Face's clients do."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from tokenizers import Tokenizer
from transformers import pipeline

from compress.headed_encoder import load_headed
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.support.serve.browser import IN_A_BROWSER, Driver, Window
from tests.support.serve.headed import NAMES, add_headed
from tests.support.serve.supervised import REAL, Supervised, eventually, supervised
from train.models.load import load_model

TEXTS = ["Rates rose again in March.", "The mill stands by the river, where it always stood.", "Rain."]
QUERY = "Where is the mill?"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("predictions") / "home")


@pytest.fixture(scope="module")
def parents(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return add_headed(settings, tmp_path_factory.mktemp("headed"))


@pytest.fixture(scope="module")
def server(settings: Settings, parents: dict[str, Path]) -> Iterator[Supervised]:
    with supervised(settings.home, *NAMES, command=REAL, EVERLEARN_ONNX__THREADS="1") as running:
        yield running.ready(within_s=300)


def ask(server: Supervised, path: str, **body: Any) -> Any:
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def logits_of(model_dir: Path, task: Any, texts: list[Any]) -> list[torch.Tensor]:
    """torch's, each text alone: (…, labels)."""
    model, tokenizer = load_headed(model_dir, task), Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    found: list[torch.Tensor] = []
    for text in texts:
        one = tokenizer.encode(*text) if isinstance(text, tuple) else tokenizer.encode(text)
        feeds = {
            "input_ids": np.array([one.ids]),
            "attention_mask": np.array([one.attention_mask]),
            "token_type_ids": np.array([one.type_ids]),
        }
        found.append(torch.from_numpy(model.predict(feeds)[0][0]))
    return found


def test_a_classifier_is_compressed_and_served_with_its_parents_labels(
    server: Supervised, settings: Settings, parents: dict[str, Path]
) -> None:
    registry = Registry(settings)
    version = registry.resolve("topics@2")
    assert (version.format, version.task) == ("onnx", "classify")
    assert version.manifest.recipe["export"]["to"] == "int8-onnx"
    assert version.manifest.metrics["prediction_divergence"] < 0.01
    answer = ask(server, "/classify", model="topics", input=TEXTS)
    assert answer["object"] == "list" and answer["usage"]["prompt_tokens"] > 10
    for index, (said, logits) in enumerate(
        zip(answer["data"], logits_of(parents["topics"], "classify", TEXTS), strict=True)
    ):
        assert said["index"] == index and said["num_classes"] == 3
        assert said["probs"] == pytest.approx(logits.softmax(-1).tolist(), abs=0.05)
        assert said["label"] == ["sport", "politics", "weather"][int(np.argmax(said["probs"]))]


def test_documents_come_in_the_order_of_their_scores(server: Supervised, parents: dict[str, Path]) -> None:
    wanted = [
        float(one[0].sigmoid())
        for one in logits_of(parents["ranker"], "score", [(QUERY, one) for one in TEXTS])
    ]
    scored = ask(server, "/v1/score", model="ranker", text_1=QUERY, text_2=TEXTS)
    assert [one["score"] for one in scored["data"]] == pytest.approx(wanted, abs=1e-4)
    renamed = ask(server, "/score", model="ranker", queries=[QUERY] * 3, documents=TEXTS)
    assert [one["score"] for one in renamed["data"]] == pytest.approx(wanted, abs=1e-4)
    order = sorted(range(3), key=lambda at: -wanted[at])
    documents = [{"text": one} for one in TEXTS]
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        found = ask(server, path, model="ranker", query=QUERY, documents=documents, top_n=2)["results"]
        assert [one["index"] for one in found] == order[:2]
        assert [one["document"] for one in found] == [{"text": TEXTS[at]} for at in order[:2]]
        assert found[0]["relevance_score"] == pytest.approx(max(wanted), abs=1e-4)
    bare = ask(server, "/rerank", model="ranker", query=QUERY, documents=TEXTS, return_documents=False)
    assert (
        all(set(one) == {"index", "relevance_score"} for one in bare["results"]) and len(bare["results"]) == 3
    )


def test_what_is_too_long_is_cut_where_that_is_asked_for(
    server: Supervised, parents: dict[str, Path]
) -> None:
    long = [f"{TEXTS[1]} " * 200, TEXTS[0]]
    refused = httpx.post(f"{server.url}/rerank", json={"model": "ranker", "query": QUERY, "documents": long})
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"
    like = Tokenizer.from_file(str(parents["ranker"] / "tokenizer.json"))
    like.enable_truncation(40, strategy="longest_first")
    model = load_headed(parents["ranker"], "score")
    wanted: list[float] = []
    for document in long:
        one = like.encode(QUERY, document)
        feeds = {
            "input_ids": [one.ids],
            "attention_mask": [one.attention_mask],
            "token_type_ids": [one.type_ids],
        }
        rows, *_ = model.predict({name: np.array(value) for name, value in feeds.items()})
        wanted.append(float(torch.from_numpy(rows[0]).sigmoid()[0]))
    body: dict[str, Any] = {"model": "ranker", "truncate_prompt_tokens": 40}
    scored = ask(server, "/score", text_1=QUERY, text_2=long, **body)
    assert [one["score"] for one in scored["data"]] == pytest.approx(wanted, abs=1e-4)
    assert scored["usage"]["prompt_tokens"] <= 80
    ranked = ask(server, "/rerank", query=QUERY, documents=long, **body)
    assert {one["index"]: one["relevance_score"] for one in ranked["results"]} == pytest.approx(
        dict(enumerate(wanted)), abs=1e-4
    )
    short = ask(server, "/v2/rerank", model="ranker", query=QUERY, documents=long, max_tokens_per_doc=5)
    assert len(short["results"]) == 2
    for path, model in (("/classify", "topics"), ("/pooling", "names")):
        said = ask(server, path, model=model, input=long, truncate_prompt_tokens=-1)
        assert len(said["data"]) == 2


def test_tokens_have_the_probabilities_that_torch_gives_them(
    server: Supervised, parents: dict[str, Path]
) -> None:
    answer = ask(server, "/pooling", model="names", input=TEXTS, task="token_classify")
    for said, logits in zip(
        answer["data"], logits_of(parents["names"], "token_classify", TEXTS), strict=True
    ):
        assert np.array(said["data"]) == pytest.approx(logits.softmax(-1).numpy(), abs=1e-4)


def test_an_answer_that_would_be_huge_is_refused_before_it_is_computed(server: Supervised) -> None:
    texts = ["a b c d e f g h i j " * 11] * 2048
    refused = httpx.post(f"{server.url}/models/names", json={"inputs": texts}, timeout=60)
    assert refused.status_code == 400
    assert "tokens, and an answer speaks of at most 100000" in refused.text


def test_hugging_faces_client_gets_what_its_pipeline_says(
    server: Supervised, parents: dict[str, Path]
) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def client(name: str) -> Any:
        return hub.InferenceClient(f"{server.url}/models/{name}", provider="hf-inference")

    context = " ".join(TEXTS) * 12  # three windows
    answer = client("finder").question_answering(question=QUERY, context=context)
    assert context[answer.start : answer.end] == answer.answer and 0 < answer.score <= 1
    named = client("names").token_classification(TEXTS[1])
    assert all(TEXTS[1][one.start : one.end] == one.word and one.entity_group == "PER" for one in named)
    labels = client("topics").text_classification(TEXTS[0])
    assert {one.label for one in labels} == {"sport", "politics", "weather"}
    assert sum(one.score for one in labels) == pytest.approx(1, abs=1e-5)
    # what transformers' own pipelines find in the float models
    theirs = pipeline("token-classification", str(parents["names"]), aggregation_strategy="simple")(TEXTS[1])
    assert [(one.start, one.end) for one in named] == [(one["start"], one["end"]) for one in theirs]


def test_an_encoder_decoder_answers_as_torch_does_alone_and_beside_others(
    server: Supervised, parents: dict[str, Path]
) -> None:
    """Greedy unless a temperature is asked for; whole, streamed, several at once, and with a seed."""
    model = load_model(parents["writer"], "text2text")
    tokenizer = Tokenizer.from_file(str(parents["writer"] / "tokenizer.json"))
    wanted: list[str] = []
    for text in TEXTS:
        with torch.inference_mode():
            ids = torch.tensor([tokenizer.encode(text).ids])
            said = model.generate(ids, max_new_tokens=20, do_sample=False, num_beams=1)[0]
        wanted.append(tokenizer.decode(said.tolist(), skip_special_tokens=True).removeprefix(" "))
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    together = client.completions.create(model="writer", prompt=TEXTS, max_tokens=20)
    assert [one.text for one in together.choices] == wanted
    assert together.usage and together.usage.prompt_tokens > 10
    with ThreadPoolExecutor(3) as pool:  # answers that begin at different steps

        def streamed(text: str) -> str:
            stream = client.completions.create(model="writer", prompt=text, max_tokens=20, stream=True)
            return "".join(chunk.choices[0].text for chunk in stream if chunk.choices)

        assert list(pool.map(streamed, TEXTS)) == wanted
    sampled = [
        client.completions.create(model="writer", prompt=TEXTS[0], max_tokens=20, temperature=1.0, seed=seed)
        for seed in (1, 1, 2)
    ]
    first, again, other = (one.choices[0].text for one in sampled)
    assert first == again != other


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/classify", {"model": "topics", "input": ["fine", ""]}, "input"),
        ("/classify", {"model": "topics", "input": "word " * 3000}, "input"),
        ("/classify", {"model": "ranker", "input": "x"}, "model"),
        ("/v1/embeddings", {"model": "topics", "input": "x"}, "model"),
        ("/v1/completions", {"model": "topics", "prompt": "x"}, "model"),
        ("/v1/completions", {"model": "writer", "prompt": "x", "echo": True}, "echo"),
        ("/v1/completions", {"model": "writer", "prompt": "x", "max_tokens": 600}, "max_tokens"),
        ("/v1/completions", {"model": "writer", "prompt": "word " * 600}, "prompt"),
        (
            "/v1/chat/completions",
            {"model": "writer", "messages": [{"role": "user", "content": "x"}]},
            "model",
        ),
        ("/score", {"model": "ranker", "text_1": ["a", "b"], "text_2": ["c"]}, "text_2"),
        ("/rerank", {"model": "ranker", "query": "x", "documents": []}, "documents"),
        ("/rerank", {"model": "ranker", "query": "x", "documents": ["y", ""]}, "documents"),
        ("/pooling", {"model": "names", "input": "x", "task": "embed"}, "task"),
        (
            "/classify",
            {"model": "topics", "input": "x", "truncate_prompt_tokens": 0},
            "truncate_prompt_tokens",
        ),
        (
            "/classify",
            {"model": "topics", "input": "x", "truncate_prompt_tokens": 9999},
            "truncate_prompt_tokens",
        ),
        ("/models/finder", {"inputs": {"question": "", "context": "x"}}, "inputs.question"),
        ("/models/finder", {"inputs": "a text alone"}, "model"),
        ("/models/finder", {"model": "names", "inputs": "x"}, "model"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_its_name(
    server: Supervised, path: str, body: Any, param: str
) -> None:
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param, response.text


class TestPlayground:
    pytestmark = IN_A_BROWSER

    def test_shows_what_each_kind_of_model_says(self, server: Supervised, browser: Driver) -> None:
        from selenium.webdriver.common.keys import Keys

        page = Window(browser, f"{server.url}/")
        page.load()
        eventually(lambda: "writer" in page.one("#model").text)

        def shown(name: str, text: str, selector: str) -> list[str]:
            """What stands at ``selector`` of the answer; the lines of ``text`` as a person writes them."""
            page.driver.execute_script(
                "const select = document.getElementById('model'); select.value = arguments[0];"
                "select.dispatchEvent(new Event('change'))",
                name,
            )
            before = len(page.all(".answer"))
            first, *others = text.split("\n")
            page.one("#prompt").send_keys(
                first,
                *(key for line in others for key in (Keys.SHIFT, Keys.ENTER, Keys.SHIFT, line)),
                Keys.ENTER,
            )
            eventually(lambda: len(page.all(".answer")) > before and not page.all(".working"))
            return page.texts(f".answer:last-child {selector}")

        assert set(shown("topics", TEXTS[0], ".bar-label")) == {"sport", "politics", "weather"}
        assert set(shown("ranker", "\n".join([QUERY, *TEXTS]), ".ranked > li > p")) == set(TEXTS)
        assert shown("finder", f"{QUERY}\n{TEXTS[1]}", "mark")[0] in TEXTS[1]
        assert shown("names", TEXTS[1], ".text p")[0].replace("PER", "") == TEXTS[1]
        assert shown("writer", TEXTS[1], ".text p")[0]
        assert page.problems() == []
