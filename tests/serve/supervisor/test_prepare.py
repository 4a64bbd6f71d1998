"""From a name to a servable version: what is imported, what is compressed, and what is used as it is."""

from importlib.util import find_spec
from typing import Literal

import pytest

from everlearn.errors import Conflict, NotFound, Unsupported
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from serve.supervisor.prepare import champions, refuse_twice, servable
from tests.support.serve.supervised import add_model


class Worker:
    """Stands for the `everlearn` child process: notes what was asked, and leaves behind what it would."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.asked: list[list[str]] = []

    async def __call__(self, arguments: list[str]) -> None:
        self.asked.append(list(arguments))
        command, ref = arguments[:2]
        if command == "import":
            add_model(
                self.settings, ref, format="safetensors", task="embed" if ref == "minilm" else "generate"
            )
        else:
            parent = Registry(self.settings).resolve(ref)
            made_format = "onnx" if parent.task == "embed" else "onnx-genai"
            add_model(self.settings, parent.model, format=made_format, task=parent.task, parent=parent.digest)


def with_engine(settings: Settings, engine: Literal["onnx", "vllm"]) -> Settings:
    """The same home, and one kind of engine asked for."""
    return settings.model_copy(update={"serve": settings.serve.model_copy(update={"engine": engine})})


async def test_a_catalogue_name_is_imported_and_compressed(settings: Settings) -> None:
    work = Worker(settings)
    version = await servable(Registry(settings), "smollm2", work)
    assert version.ref == "smollm2@2" and version.format == "onnx-genai"
    assert work.asked == [["import", "smollm2"], ["compress", "smollm2@1", "--to", "int4-onnx"]]


async def test_an_encoder_is_compressed_to_int8(settings: Settings) -> None:
    work = Worker(settings)
    version = await servable(Registry(settings), "minilm", work)
    assert version.task == "embed"
    assert work.asked[-1] == ["compress", "minilm@1", "--to", "int8-onnx"]


async def test_what_was_compressed_before_is_used_again(settings: Settings) -> None:
    work = Worker(settings)
    first = await servable(Registry(settings), "smollm2", work)
    work.asked.clear()
    for ref in ("smollm2", "smollm2@1", "smollm2@2", "smollm2@champion"):
        assert (await servable(Registry(settings), ref, work)).ref == first.ref
    assert work.asked == []


async def test_an_unknown_version_is_not_imported(settings: Settings) -> None:
    add_model(settings, "tiny")
    with pytest.raises(NotFound, match="tiny@1"):
        await servable(Registry(settings), "tiny@7", Worker(settings))


async def test_a_format_without_an_engine_is_refused(settings: Settings) -> None:
    add_model(settings, "quantized", format="compressed-tensors")
    with pytest.raises(Unsupported, match="compressed-tensors"):
        await servable(Registry(with_engine(settings, "onnx")), "quantized", Worker(settings))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
async def test_without_vllm_it_is_said_how_to_install_it(settings: Settings) -> None:
    add_model(settings, "quantized", format="compressed-tensors")
    with pytest.raises(Unsupported, match="make install-vllm"):
        await servable(Registry(settings), "quantized", Worker(settings))


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here")
async def test_vllm_serves_what_a_champion_was_compressed_from(settings: Settings) -> None:
    registry, work = Registry(with_engine(settings, "vllm")), Worker(settings)
    await servable(Registry(settings), "smollm2", work)
    work.asked.clear()
    for ref in ("smollm2", "smollm2@1", "smollm2@champion"):
        assert (await servable(registry, ref, work)).ref == "smollm2@1"
    assert champions(registry) == ["smollm2"]
    assert work.asked == []


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here")
async def test_vllm_serves_quantized_tensors_as_they_are(settings: Settings) -> None:
    add_model(settings, "quantized", format="compressed-tensors")
    assert (await servable(Registry(settings), "quantized", Worker(settings))).ref == "quantized@1"


async def test_vllm_is_refused_a_model_that_only_exists_as_onnx(settings: Settings) -> None:
    add_model(settings, "tiny")
    with pytest.raises(Unsupported, match="vLLM"):
        await servable(Registry(with_engine(settings, "vllm")), "tiny", Worker(settings))


async def test_an_encoder_stays_with_onnx_whatever_the_engine(settings: Settings) -> None:
    version = await servable(Registry(with_engine(settings, "vllm")), "minilm", Worker(settings))
    assert version.format == "onnx"


def test_a_model_is_named_once() -> None:
    refuse_twice(["tiny", "small@1", "tiny-2"])
    with pytest.raises(Conflict, match="tiny is named twice"):
        refuse_twice(["tiny", "small", "tiny@1"])


def test_a_champion_that_its_engine_refuses_is_among_those_to_serve_so_that_it_is_told(
    settings: Settings,
) -> None:
    for model in ("tiny", "small"):
        add_model(settings, model)
    add_model(settings, "raw", format="safetensors")
    assert champions(Registry(settings)) == ["small", "tiny"]
    assert champions(Registry(with_engine(settings, "vllm"))) == ["small", "tiny"]
