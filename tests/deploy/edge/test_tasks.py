"""Models that are neither decoders nor plain encoders, from the registry to a device: folders, runner, page, updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer

from deploy.edge.build import build
from deploy.edge.check.check import run
from deploy.edge.check.sessions import native, place_for
from deploy.edge.manifest import AnswerProbe, EncoderDecoderGraph, HeadGraph, HeadProbe, read_manifest
from deploy.edge.probes import Differs
from deploy.edge.targets import TARGETS, TWO_GRAPHS
from deploy.updates.device.store import Followed, create
from deploy.updates.device.update import update
from deploy.updates.keys import Keys
from deploy.updates.publisher import init, opened
from everlearn.bundles.tasks import HEADED, Task
from everlearn.errors import Corrupt, Unsupported
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from serve.engines.onnx.encoders.entities import entities
from serve.engines.onnx.encoders.extraction import answers, windows_of
from serve.engines.onnx.encoders.heads import OUTPUTS, sigmoid, softmax
from serve.engines.onnx.encoders.model import Encoded, EncoderModel, Rows
from serve.engines.onnx.seq2seq.model import EncoderDecoder
from tests.deploy.edge.models import home_with_npm, register_changed, register_encoder
from tests.deploy.edge.web.page_server import FaultyServer
from tests.deploy.native.conftest import Running, changed, running
from tests.deploy.updates.conftest import served
from tests.support.serve.browser import IN_A_BROWSER, Driver

TEXTS = ["Rates rose again in March.", "The mill stands by the river, where it always stood.", "Rain."]
QUERY = "Where is the mill?"
Folder = Callable[[Task, str], Path]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A registry with a version of each task, by its name."""
    folder = tmp_path_factory.mktemp("tasks")
    settings = home_with_npm(folder / "home")
    for task in (*HEADED, "text2text"):
        register_encoder(settings, folder / task, task)
    return settings


@pytest.fixture(scope="module")
def folder_of(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Folders by task and target, each made once; read them, and change nothing in them."""
    root = tmp_path_factory.mktemp("folders")

    def made(task: Task, target: str) -> Path:
        out = root / target / task
        if not out.exists():
            out.parent.mkdir(exist_ok=True)
            build(settings, f"{task}@1", target, out)
        return out

    return made


@pytest.mark.parametrize("task", HEADED)
def test_a_folder_has_the_labels_and_logits_that_a_device_must_reproduce(
    folder_of: Folder, task: Task
) -> None:
    made = read_manifest(folder_of(task, "linux-x64"))
    assert made.task == task and made.form == "int8-dynamic" and isinstance(made.graph, HeadGraph)
    assert made.graph.context == 128
    if task == "classify":
        assert made.graph.labels == ["sport", "politics", "weather"]
    for probe in made.probes:
        assert isinstance(probe, HeadProbe) and len(probe.type_ids) == len(probe.token_ids)
        assert (1 in probe.type_ids) == (task in ("score", "question_answer"))
        assert (
            len(probe.logits) == {"classify": 3, "score": 1, "token_classify": 8, "question_answer": 16}[task]
        )


def test_labels_that_are_not_the_graphs_are_refused_before_anything_is_written(
    settings: Settings, tmp_path: Path
) -> None:
    ref = register_changed(settings, "classify", config=lambda said: said["id2label"].pop("2"))
    with pytest.raises(Unsupported, match=r"its graph computes 3 labels, and id2label .* names 2"):
        build(settings, ref, "web", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_other_logits_are_refused(folder_of: Folder, tmp_path: Path) -> None:
    folder = folder_of("classify", "linux-x64")
    assert run(folder, read_manifest(folder), native()).difference < 0.01
    probes = [one.model_dump() for one in read_manifest(folder).probes]
    probes[-1]["logits"][2] += 0.2
    other = changed(folder, tmp_path / "other", probes=probes)
    with pytest.raises(Differs, match="must not serve this folder"):
        run(other, read_manifest(other), native())


def test_a_folder_of_an_encoder_decoder_has_each_tensor_once(folder_of: Folder) -> None:
    folder = folder_of("text2text", "linux-x64")
    made = read_manifest(folder)
    assert isinstance(made.graph, EncoderDecoderGraph) and made.graph.first == [0]
    assert made.generation and made.generation.eos_token_ids == [2] and made.generation.temperature == 0
    assert all(isinstance(one, AnswerProbe) and len(one.answer_ids) == 4 for one in made.probes)
    graphs = [onnx.load(folder / name, load_external_data=False).graph for name in TWO_GRAPHS]
    encoder, decoder = ({one.name for one in graph.initializer if one.external_data} for graph in graphs)
    assert len(encoder & decoder) == 1  # the embedding
    assert {span.name for spans in made.tensors.values() for span in spans} == encoder | decoder


def test_the_runner_answers_from_an_encoder_decoder_as_the_version_does(
    settings: Settings, folder_of: Folder, tmp_path: Path
) -> None:
    registry = Registry(settings)
    bundle = registry.path(registry.resolve("text2text@1"))
    with running(folder_of("text2text", "linux-x64"), "--threads", 1, log=tmp_path / "log") as runner:
        body = {"model": "text2text", "prompt": TEXTS, "max_tokens": 20}
        said = runner.client.post("/completions", json=body).json()
    assert [one["text"] for one in said["choices"]] == [written(bundle, text, 20) for text in TEXTS]


def written(bundle: Path, source: str, most: int) -> str:
    """Greedily, by the version's own graphs."""
    graphs = EncoderDecoder(bundle, threads=1)
    tokenizer: Any = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    state, logits = graphs.read([np.array(tokenizer.encode(source).ids)])
    ids: list[int] = []
    while len(ids) < most and (token := int(logits[0].argmax())) not in graphs.eos_ids:
        ids.append(token)
        logits = graphs.step(state, np.array([token]))
    return tokenizer.decode(ids).removeprefix(" ")


def test_the_runner_classifies_with_the_gateways_paths(folder_of: Folder, tmp_path: Path) -> None:
    with running(folder_of("classify", "linux-x64"), "--threads", 1, log=tmp_path / "log") as runner:
        said = post(runner, "/classify", model="classify", input=TEXTS).json()
        named = post(runner, "/models/classify", inputs=TEXTS[0]).json()
        refused = post(runner, "/score", text_1="a", text_2="b")
    assert [one["index"] for one in said["data"]] == [0, 1, 2] and said["usage"]["prompt_tokens"] > 10
    for one in said["data"]:
        assert sum(one["probs"]) == pytest.approx(1, abs=1e-5) and one["num_classes"] == 3
        assert one["label"] == ["sport", "politics", "weather"][one["probs"].index(max(one["probs"]))]
    assert named[0][0]["label"] == said["data"][0]["label"] and len(named[0]) == 3
    assert refused.status_code == 404 and "it offers /classify, /models/classify" in refused.text


def test_the_runner_ranks_with_the_gateways_paths(folder_of: Folder, tmp_path: Path) -> None:
    with running(folder_of("score", "linux-x64"), "--threads", 1, log=tmp_path / "log") as runner:
        scored = [
            post(runner, path, model="score", text_1=QUERY, text_2=TEXTS).json()
            for path in ("/score", "/v1/score")
        ]
        ranked = [
            post(runner, path, model="score", query=QUERY, documents=TEXTS).json()
            for path in ("/rerank", "/v1/rerank", "/v2/rerank")
        ]
    scores = [one["score"] for one in scored[0]["data"]]
    assert [one["score"] for one in scored[1]["data"]] == pytest.approx(scores, abs=1e-6)
    for said in ranked:
        assert [one["index"] for one in said["results"]] == sorted(range(3), key=lambda at: -scores[at])


def post(runner: Running, path: str, **body: Any) -> httpx.Response:
    return runner.client.post(str(runner.client.base_url).removesuffix("/v1/") + path, json=body)


@pytest.mark.parametrize("task", ["classify", "text2text"])
def test_a_device_gets_the_next_version_as_a_difference_and_refuses_one_with_other_logits(
    settings: Settings, folder_of: Folder, tmp_path: Path, task: Task
) -> None:
    first = folder_of(task, "linux-x64")
    second, wrong = tmp_path / "2", tmp_path / "3"
    build(settings, register_changed(settings, task, learn), "linux-x64", second)
    probes = [one.model_dump() for one in read_manifest(second).probes]
    probes[0]["logits" if task == "classify" else "top_logits"][0] += 1
    changed(second, wrong, version=99, probes=probes)
    channel, keys = tmp_path / "channel", Keys(tmp_path / "keys", tmp_path / "channel")
    init(channel, keys)
    with served(channel) as url:
        root = (channel / "metadata" / "1.root.json").read_bytes()
        device = create(tmp_path / "device", root, Followed(url=url, model=task, target="linux-x64"))

        def publish(folder: Path) -> None:
            with opened(channel, keys) as publisher:
                publisher.publish(folder)

        publish(first)
        whole = update(device)
        publish(second)
        lesson = update(device)
        assert lesson.version == read_manifest(second).version and same_files(device.current(), second)
        assert lesson.received_bytes < 0.5 * whole.received_bytes
        publish(wrong)
        with pytest.raises(Corrupt, match="computes numbers 1 from those of its manifest"):
            update(device)
    assert same_files(device.current(), second)


def learn(model: onnx.ModelProto) -> None:
    """One in a hundred of the codes of 8 bits is a step away."""
    draw = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2:
            codes = onnx.numpy_helper.to_array(tensor)
            moved = codes - np.sign(codes) * (draw.random(codes.shape) < 0.01)
            tensor.raw_data = moved.astype(np.int8).tobytes()


def same_files(one: Path, other: Path) -> bool:
    names = [file.name for file in other.iterdir()]
    return len(names) > 3 and all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


class Engine:
    """What the gateway's engine computes of a version."""

    def __init__(self, settings: Settings, task: Task) -> None:
        registry = Registry(settings)
        bundle = registry.path(registry.resolve(f"{task}@1"))
        options: Any = {"threads": 1, "queue_limit": 64, "context": 128, "places": True}
        self.model = EncoderModel(bundle, outputs=OUTPUTS[task], **options)

    def of(self, texts: Sequence[str | tuple[str, str]]) -> tuple[list[Encoded], list[Rows]]:
        encoded = self.model.encode(texts)
        return encoded, [self.model._run([one])[0] for one in encoded]


ASK = """
const done = arguments[arguments.length - 1];
const completion = async (client, request) => {
  const whole = await client.completions.create(request);
  let streamed = "";
  for await (const {choices} of await client.completions.create({...request, stream: true})) streamed += choices[0].text;
  return {whole, streamed};
};
const run = async (asked) => {
  const {EverlearnWeb} = await import("/text2text/everlearn_web/index.js");
  const found = {};
  for (const [task, calls] of Object.entries(asked)) {
    const client = await EverlearnWeb.load(`/${task}/`, {threads: 1});
    found[task] = [];
    for (const [method, request] of calls) {
      const call = method === "completion" ? completion(client, request) : client[method](request);
      const said = await call.catch(({code, message}) => ({code, message}));
      found[task].push(said);
    }
    client.close();
  }
  return found;
};
run(arguments[0]).then(done, (error) => done(String(error)));
"""
CONTEXT = " ".join(TEXTS) * 12  # three windows
NEAR: Any = {"abs": 0.02}
"""Of what 8 bits on WebAssembly are from 8 bits here."""


class TestPage:
    pytestmark = IN_A_BROWSER

    def test_answers_as_the_gateway_does(self, settings: Settings, folder_of: Folder, driver: Driver) -> None:
        root = folder_of("text2text", "web").parent
        runtime = {"name": "onnxruntime-web", "version": TARGETS["web"].runtime.version}
        for task in HEADED:  # the files are those of linux-x64
            changed(folder_of(task, "linux-x64"), root / task, target="web", runtime=runtime)
        pairs = root / "question_answer"
        assert run(pairs, read_manifest(pairs), place_for(settings, "web")).difference < 0.1
        parameters = {"parameters": {"aggregation_strategy": "none", "ignore_labels": []}}
        asked: dict[str, Any] = {
            "classify": [("classify", {"input": TEXTS}), ("score", {"text_1": "a", "text_2": "b"}), ("classify", {"input": "w " * 300})],
            "score": [("score", {"text_1": QUERY, "text_2": TEXTS}), ("rerank", {"query": QUERY, "documents": TEXTS, "top_n": 2})],
            "token_classify": [("tokenClassify", {"inputs": TEXTS, **parameters}), ("tokenClassify", {"inputs": TEXTS[0]})],
            "text2text": [("completion", {"prompt": text, "max_tokens": 20}) for text in TEXTS],
            "question_answer": [("answer", {"inputs": {"question": QUERY, "context": CONTEXT}, "parameters": {"top_k": 3}})],
        }  # fmt: skip
        server = FaultyServer(root)
        with server.running():
            driver.get(server.url + "text2text/edge.json")
            found = driver.execute_async_script(ASK, asked)
        assert isinstance(found, dict), found

        classified, wrong, long = found["classify"]
        _, rows = Engine(settings, "classify").of(TEXTS)
        for said, (logits,) in zip(classified["data"], rows, strict=True):
            assert said["probs"] == pytest.approx(softmax(logits).tolist(), **NEAR)
            assert said["label"] == ["sport", "politics", "weather"][int(np.argmax(said["probs"]))]
        assert wrong["code"] == "unsupported" and long["code"] == "context_length_exceeded"

        scored, ranked = found["score"]
        _, rows = Engine(settings, "score").of([(QUERY, one) for one in TEXTS])
        wanted = [float(sigmoid(one[0][0])) for one in rows]
        assert [one["score"] for one in scored["data"]] == pytest.approx(wanted, **NEAR)
        order = sorted(range(3), key=lambda at: -scored["data"][at]["score"])
        assert [one["index"] for one in ranked["results"]] == order[:2]
        assert ranked["results"][0]["document"] == {"text": TEXTS[order[0]]}

        tokens, grouped = found["token_classify"]
        texts, rows = Engine(settings, "token_classify").of(TEXTS)
        for said, text, encoded, (logits,) in zip(tokens, TEXTS, texts, rows, strict=True):
            right = entities(text, encoded, softmax(logits), ["O", "B-PER", "I-PER"], (), simple=False)
            assert [(one["start"], one["end"], one["word"]) for one in said] == [
                (one["start"], one["end"], one["word"]) for one in right
            ]
            assert [one["score"] for one in said] == pytest.approx([one["score"] for one in right], **NEAR)
        assert all(one["entity_group"] == "PER" for one in grouped)

        engine = Engine(settings, "question_answer")
        windows = windows_of(engine.model, QUERY, CONTEXT)
        computed = [engine.model._run([one])[0] for one in windows.texts]
        (spans,) = found["question_answer"]
        right = answers(windows, computed, 3)
        assert len(windows.texts) > 2 and len(spans) == 3
        assert all(CONTEXT[one["start"] : one["end"]] == one["answer"] for one in spans)
        assert [one["score"] for one in spans] == pytest.approx([one["score"] for one in right], rel=0.1)

        registry = Registry(settings)
        bundle = registry.path(registry.resolve("text2text@1"))
        for said, text in zip(found["text2text"], TEXTS, strict=True):
            (choice,) = said["whole"]["choices"]
            assert choice["text"] == said["streamed"] == written(bundle, text, 20) != ""
            assert (
                choice["finish_reason"] in ("stop", "length") and said["whole"]["usage"]["prompt_tokens"] > 2
            )
