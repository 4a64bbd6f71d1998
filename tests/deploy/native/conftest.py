"""Edge folders of tiny models, and runners that serve them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer

from compress.export import decoder_request
from compress.recipe import Calibration, CompressRecipe
from compress.targets import onnx_decoder, onnx_encoder
from deploy.edge.build import decoder_graph
from deploy.edge.last_logits import keep_last_logits
from deploy.edge.manifest import (
    EdgeManifest,
    EncoderGraph,
    EncoderProbe,
    RuntimeUsed,
    describe,
    write_manifest,
)
from deploy.edge.probes import decoder_probes
from deploy.edge.weights import move_weights
from everlearn.progress import silent
from tests.conftest import REPOSITORY
from tests.support.tiny_models import write_bert, write_llama

RUNTIME = RuntimeUsed(name="onnxruntime", version=ort.__version__)
RUNNER = (sys.executable, "-m", "deploy.edge.native")
READY_S = 300


@dataclass
class Running:
    """A runner that serves."""

    process: subprocess.Popen[str]
    client: httpx.Client
    log: Path

    def said(self, event: str) -> list[dict[str, Any]]:
        """What it has logged under that name."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]


@contextmanager
def running(*options: object, command: tuple[str, ...] = RUNNER, log: Path, **env: str) -> Iterator[Running]:
    """A runner with ``options`` on a free port, from its being ready until it has been told to end."""
    with (
        log.open("w") as output,
        started(*options, "--port", 0, command=command, output=output, **env) as process,
    ):
        found = Running(process, httpx.Client(timeout=60), log)
        deadline_s = READY_S
        while not (ready := found.said("ready")):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
            deadline_s -= 0.1
            assert process.poll() is None and deadline_s > 0, log.read_text()[-3000:]
        found.client.base_url = ready[0]["url"]
        with found.client:
            yield found


@contextmanager
def started(*options: object, command: tuple[str, ...] = RUNNER, output: Any, **env: str) -> Iterator[Any]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EVERLEARN_")}
    process = subprocess.Popen(
        [*command, *map(str, options)],
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        env={**inherited, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **env},
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def refused(*options: object, **env: str) -> tuple[int, str]:
    """Exit code and last line of a runner that does not start."""
    with started(*options, output=subprocess.PIPE, **env) as process:
        said, _ = process.communicate(timeout=READY_S)
    return process.returncode, said.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder of 4 bits, as linux targets have it."""
    parent, bundle, out = (tmp_path_factory.mktemp(name) for name in ("llama", "int4", "decoder"))
    write_llama(parent)
    onnx_decoder.build_onnx_decoder(
        decoder_request(parent, bundle, CompressRecipe(to="int4-onnx"), None), silent
    )
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    keep_last_logits(model)
    move_weights(model, bundle, out, silent)
    (out / "model.onnx").write_bytes(model.SerializeToString())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "genai_config.json"):
        shutil.copyfile(bundle / name, out / name)
    config = json.loads((out / "genai_config.json").read_text())["model"]
    graph = decoder_graph(model, config, 1024)
    say(out, task="generate", form="int4-matmulnbits", graph=graph, probes=decoder_probes(out, graph, {}))
    return out


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of 8 bits."""
    parent, out = (tmp_path_factory.mktemp(name) for name in ("bert", "encoder"))
    write_bert(parent)
    request = {
        "model_dir": str(parent),
        "directory": str(out),
        "precision": "int8",
        "calibration": Calibration(tokens=1024).model_dump(mode="json"),
    }
    onnx_encoder.build_onnx_encoder(request, silent)
    ids = Tokenizer.from_file(str(out / "tokenizer.json")).encode("the cat sat").ids
    session = ort.InferenceSession(str(out / "model.onnx"))
    row = np.array([ids], np.int64)
    feeds = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
    taken = {one.name for one in session.get_inputs()}
    (vector,) = np.asarray(
        session.run(["sentence_embedding"], {k: v for k, v in feeds.items() if k in taken})[0]
    )
    probe = EncoderProbe(token_ids=ids, embedding=[round(float(one), 5) for one in vector[:8]])
    (out / "config.json").unlink()
    graph = EncoderGraph(context=64, hidden=len(vector))
    say(out, task="embed", form="int8-dynamic", graph=graph, probes=[probe])
    return out


def say(folder: Path, **fields: Any) -> None:
    """Writes edge.json over the files that are there."""
    (folder / "edge.json").unlink(missing_ok=True)
    files = [
        describe(folder, path.relative_to(folder).as_posix())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    size = sum(one.bytes for one in files)
    known = {"model": "tiny", "version": 1, "digest": "0" * 64, "target": "linux-x64", "runtime": RUNTIME}
    known |= {"tensors": {}, "bound": 0.1, "memory_is": "estimated"}
    sizes = {"download_bytes": size, "memory_bytes": size}
    write_manifest(folder, EdgeManifest(**known, **sizes, files=files, **fields))


def changed(source: Path, copy: Path, **fields: Any) -> Path:
    """A copy whose edge.json says ``fields`` instead."""
    shutil.copytree(source, copy)
    said = json.loads((copy / "edge.json").read_text())
    (copy / "edge.json").write_text(json.dumps({**said, **fields}))
    return copy
