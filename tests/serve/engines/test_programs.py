"""The table of engines: what is made from it, what it refuses, and an engine that is added as CONTRIBUTING says."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import httpx
import pytest

from everlearn.bundles.bundle import SERVABLE, Format, Task
from everlearn.errors import ConfigError, Unsupported
from everlearn.settings import Settings, load_settings
from serve.engines.programs import BY_DEFAULT, ENGINES, check_choice, compresses_for, engine_for, program
from tests.serve.engines import engine_table
from tests.support.serve.supervised import REPOSITORY, Supervised, add_model

ENTRY = "EngineProgram(\n"


def with_engine(settings: Settings, engine: str) -> Settings:
    return settings.model_copy(update={"serve": settings.serve.model_copy(update={"engine": engine})})


def test_docs_have_the_table_of_engines() -> None:
    _, written, _ = engine_table.parts(engine_table.PAGE.read_text())
    assert written == engine_table.lines(), "run python -m tests.serve.engines.engine_table"


def test_every_format_is_read_by_an_engine_and_every_task_that_one_does_has_one_to_compress_for() -> None:
    assert {format for engine in ENGINES.values() for format in engine.formats} == set(get_args(Format))
    done = {task for engine in ENGINES.values() for task in engine.tasks}
    assert {task for engine in ENGINES.values() for task in engine.compress_to} == done <= set(get_args(Task))
    for engine in ENGINES.values():
        assert set(engine.by_default) <= set(engine.formats)
        assert set(engine.compress_to) <= set(engine.tasks)


def test_a_first_version_becomes_champion_where_an_engine_serves_it_that_needs_no_gpu() -> None:
    """The kernel, which cannot ask the table, has a constant for it."""
    assert {each for engine in ENGINES.values() if engine.compress_to for each in engine.formats} == SERVABLE
    assert SERVABLE < BY_DEFAULT


def test_a_setting_that_names_no_engine_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = "serve.engine: Input should be 'auto', 'onnx' or 'vllm' (got 'onx')"
    Path("everlearn.yaml").write_text("serve:\n  engine: onx\n")
    with pytest.raises(ConfigError) as by_file:
        check_choice(load_settings())
    assert by_file.value.message == f"everlearn.yaml:2: {expected}"
    monkeypatch.setenv("EVERLEARN_SERVE__ENGINE", "onx")
    with pytest.raises(ConfigError) as by_variable:
        check_choice(load_settings())
    assert by_variable.value.message == f"EVERLEARN_SERVE__ENGINE: {expected}"
    for name in ("auto", *ENGINES):
        check_choice(with_engine(load_settings(), name))


def test_everlearn_serve_refuses_an_engine_that_there_is_not(tmp_path: Path) -> None:
    """Before it opens anything: by the setting and by the option."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EVERLEARN_")}
    environment = inherited | {"EVERLEARN_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "everlearn", "serve"]
    for arguments, more, place in (
        ([], {"EVERLEARN_SERVE__ENGINE": "onx"}, "EVERLEARN_SERVE__ENGINE"),
        (["--engine", "onx"], {}, "--engine"),
    ):
        ended = subprocess.run(
            [*command, *arguments], env=environment | more, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 2 and place in ended.stderr
        assert all(repr(name) in ended.stderr for name in ("onx", "auto", *ENGINES))
    assert not (tmp_path / "home").exists()


def test_an_engine_that_is_not_installed_is_told_with_how_to_install_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = add_model(settings, "quantized", format="compressed-tensors")
    tiny = add_model(settings, "tiny")
    for name, engine in list(ENGINES.items()):
        monkeypatch.setitem(ENGINES, name, replace(engine, package="not_there"))
    with pytest.raises(Unsupported) as refused:
        program(quantized, settings)
    assert refused.value.message == (
        "quantized@1 is compressed-tensors. vLLM is not installed here: `make install-vllm` installs it; "
        "`everlearn compress quantized --to int4-onnx` makes a version that the ONNX engine serves"
    )
    with pytest.raises(
        Unsupported, match=r"The ONNX engine is not installed here: `make install-serve` installs it$"
    ):
        program(tiny, settings)


@pytest.mark.parametrize(
    ("fields", "engine", "message"),
    [
        (
            {"format": "safetensors", "task": "embed"},
            "vllm",
            "m@1 is an encoder; compress it with --to int8-onnx and the ONNX engine serves it",
        ),
        (
            {"format": "compressed-tensors"},
            "onnx",
            "m@1 is compressed-tensors, and the setting serve.engine allows the ONNX engine only",
        ),
        (
            {"format": "onnx-genai"},
            "vllm",
            "m@1 is onnx-genai, and the setting serve.engine allows vLLM only",
        ),
    ],
)
def test_a_version_that_its_engine_cannot_serve_is_refused_with_what_to_do(
    settings: Settings, fields: dict[str, str], engine: str, message: str
) -> None:
    version = add_model(settings, "m", **fields)
    with pytest.raises(Unsupported) as refused:
        program(version, with_engine(settings, engine))
    assert refused.value.message == message


def test_the_engine_of_a_version_is_the_named_one_if_it_reads_its_format(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, encoder = add_model(settings, "tiny"), add_model(settings, "minilm", format="onnx", task="embed")
    other = replace(ENGINES["onnx"], name="other", tasks=("generate",), by_default=(), compress_to={})
    monkeypatch.setitem(ENGINES, "other", other)
    named = with_engine(settings, "other")
    assert [engine_for(each, settings).name for each in (version, encoder)] == ["onnx", "onnx"]
    assert [engine_for(each, named).name for each in (version, encoder)] == ["other", "onnx"]
    assert compresses_for(version, named).name == "onnx"


@pytest.fixture
def sources_with_the_parrot(tmp_path: Path) -> Path:
    """A copy of the sources with the engine that CONTRIBUTING adds, added as it says."""
    for room in ("everlearn", "serve", "continual"):
        shutil.copytree(REPOSITORY / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(Path(__file__).parent / "parrot", tmp_path / "serve" / "engines" / "parrot")
    section = (REPOSITORY / "CONTRIBUTING.md").read_text().split("### An engine\n")[1]
    entry = section.split("```python\n")[1].split("```")[0]
    assert entry.startswith(ENTRY)
    table = tmp_path / "serve" / "engines" / "programs.py"
    source = table.read_text()
    assert source.count(ENTRY) == len(ENGINES)
    table.write_text(source.replace(ENTRY, f"{entry.rstrip()},\n{ENTRY}", 1))
    return tmp_path


@pytest.mark.slow
def test_an_engine_that_is_added_as_contributing_says_is_served(
    settings: Settings, sources_with_the_parrot: Path
) -> None:
    add_model(settings, "tiny")
    command = [sys.executable, "-m", "everlearn", "serve", "--engine", "parrot"]
    server = Supervised(settings.home, "tiny", command=command, root=sources_with_the_parrot)
    try:
        server.ready()
        assert sources_with_the_parrot.name in server.child("parrot").environ()["PYTHONPATH"]
        answer = server.ask("Polly wants a cracker")
        assert answer.json()["choices"][0]["message"]["content"] == "Polly wants a cracker"
        assert answer.headers["x-everlearn-version"] == "tiny@1"
        body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "a nut"}]}
        streamed = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30).text
        assert '"content":"nut "' in streamed.replace(": ", ":") and streamed.rstrip().endswith("[DONE]")
        listed = subprocess.run(
            [*command[:3], "ps"],
            env=server.environment,
            cwd=sources_with_the_parrot,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "parrot" in listed.stdout and "ready" in listed.stdout
        assert server.end() == 0
    finally:
        server.close()
