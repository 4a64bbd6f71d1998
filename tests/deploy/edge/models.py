"""A registry with a tiny decoder and a tiny encoder as ONNX, made once by each run: ``decoder`` and ``encoder``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from transformers import AutoConfig, AutoModelForCausalLM

from compress.export import decoder_request
from compress.parent_files import keep_tokenizer
from compress.recipe import Calibration, CompressRecipe
from compress.targets import onnx_decoder
from compress.targets.onnx_encoder import build_onnx_encoder
from compress.targets.onnx_encoder_decoder import build_onnx_encoder_decoder
from deploy.edge.targets import graphs_of
from everlearn.bundles.bundle import write_bundle
from everlearn.bundles.tasks import Task
from everlearn.chat.stops import write_genai_config
from everlearn.progress import silent
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.conftest import TEST_HOME
from tests.support.tiny_models import TINY, write_bert, write_headed, write_llama, write_t5


def home_with_npm(home: Path) -> Settings:
    """An empty home; the npm packages are the test home's: they are installed once."""
    settings = Settings(home=home)
    packages = TEST_HOME / "cache" / "npm"
    packages.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.symlink(packages, settings.directory("cache") / "npm")
    return settings


def register_decoder(settings: Settings, parent: Path, family: str = "llama") -> None:
    """As ``everlearn compress --to int4-onnx`` makes it, measurements left out."""
    parent.mkdir()
    write_llama(parent)
    if family != "llama":
        config = AutoConfig.for_model(family, **{**TINY, "head_dim": 16})
        AutoModelForCausalLM.from_config(config).save_pretrained(parent)
    registry = Registry(settings)
    with registry.staging() as staging:
        request = decoder_request(parent, staging, CompressRecipe(to="int4-onnx"), parent / "scratch")
        kept = {name: str(parent / name) for name in ("cache_dir", "reference", "carried", "far")}
        onnx_decoder.build_onnx_decoder(request | kept, silent)
        keep_tokenizer(parent, staging)
        write_genai_config(staging, parent)
        write_bundle(
            staging,
            name="decoder",
            format="onnx-genai",
            task="generate",
            architecture="LlamaForCausalLM",
            parameters=1,
        )
        registry.add(staging, "decoder")


def register_encoder(settings: Settings, parent: Path, task: Task = "embed") -> None:
    """As ``everlearn compress --to int8-onnx`` makes it: ``encoder``, another by the name of its task."""
    parent.mkdir()
    if task == "text2text":
        model = write_t5(parent)
    else:
        model = write_bert(parent) if task == "embed" else write_headed(parent, task)
    build = build_onnx_encoder_decoder if task == "text2text" else build_onnx_encoder
    registry, name = Registry(settings), "encoder" if task == "embed" else task
    with registry.staging() as staging:
        request = {
            "model_dir": str(parent),
            "directory": str(staging),
            "task": task,
            "precision": "int8",
            "calibration": Calibration(tokens=1024).model_dump(mode="json"),
        }
        build(request, silent)
        kind = type(model).__name__
        write_bundle(staging, name=name, format="onnx", task=task, architecture=kind, parameters=1)
        registry.add(staging, name)


def register_changed(
    settings: Settings,
    model: str,
    change: Callable[[onnx.ModelProto], object] = lambda _: None,
    task: Task | None = None,
    config: Callable[[dict[str, Any]], object] = lambda _: None,
) -> str:
    """Another version of ``model``, its graph (of an encoder-decoder the second) or what it says of itself changed; returns its reference."""
    registry = Registry(settings)
    first = registry.resolve(f"{model}@1")
    folder = registry.path(first)
    with registry.staging() as staging:
        for file in folder.iterdir():
            if file.name != "bundle.json":
                (staging / file.name).write_bytes(file.read_bytes())
        name = graphs_of(first.task)[-1]
        graph = onnx.load(folder / name, load_external_data=False)
        change(graph)
        (staging / name).write_bytes(graph.SerializeToString())
        if (file := staging / "config.json").is_file():
            said = json.loads(file.read_text())
            config(said)
            file.write_text(json.dumps(said))
        write_bundle(
            staging,
            name=model,
            format=first.format,
            task=task or first.task,
            architecture=first.manifest.architecture,
            parameters=1,
        )
        return registry.add(staging, model).ref
