"""The projects for phones: what they open and pin, and their folder in the runtimes that run here.

No tool chain of phones runs here. onnxruntime-genai does, in Python, with the calls that the Kotlin and Swift sources
make; and the React Native sample's own code runs in node, with onnxruntime-web.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import onnxruntime_genai as genai
import pytest
import yaml

from deploy.edge.build import build
from deploy.edge.targets import TARGETS
from deploy.edge.web.packages import node, node_modules
from everlearn.settings import Settings
from tests.conftest import REPOSITORY, TEST_HOME

NATIVE = REPOSITORY / "deploy" / "edge" / "native"
KOTLIN = NATIVE / "android" / "app" / "src" / "main" / "kotlin" / "dev" / "everlearn" / "sample"
SWIFT = NATIVE / "ios" / "Sources"
REACT = NATIVE / "react-native"
RUN = Path(__file__).with_name("run_sample.mjs")
PROMPT = "Once upon a time"
TOKENS = 6


@pytest.fixture(scope="module")
def folder(home: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phone") / "model"
    build(home, "decoder", "android", out)
    return out


def test_versions_are_exact_and_those_that_folders_are_checked_with() -> None:
    android = (NATIVE / "android" / "app" / "build.gradle.kts").read_text()
    plugins = (NATIVE / "android" / "build.gradle.kts").read_text()
    wrapper = (NATIVE / "android" / "gradle" / "wrapper" / "gradle-wrapper.properties").read_text()
    ios = yaml.safe_load((NATIVE / "ios" / "project.yml").read_text())
    react = json.loads((REACT / "package.json").read_text())
    for target in ("android", "ios"):
        assert TARGETS[target].runtime.name == "onnxruntime-genai"
        assert TARGETS[target].runtime.version == genai.__version__
    assert f'files("libs/onnxruntime-genai-android-{genai.__version__}.aar")' in android
    assert f'"com.microsoft.onnxruntime:onnxruntime-android:{onnxruntime.__version__}"' in android
    assert f"tag v{genai.__version__}" in (NATIVE / "ios" / "project.yml").read_text()
    assert f"iOS {float(ios['options']['deploymentTarget']['iOS']):g} " in TARGETS["ios"].description
    assert re.findall(r'version "([^"]+)"', plugins) == ["8.13.0", "2.2.20"]
    assert re.search(r"gradle-(\d+\.\d+)-bin", wrapper)
    assert react["dependencies"]["onnxruntime-react-native"] == "1.24.3"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", one) for one in react["dependencies"].values())


def test_every_file_and_key_that_they_read_is_in_a_folder(folder: Path) -> None:
    said = json.loads((folder / "edge.json").read_text())
    kotlin = (KOTLIN / "EdgeFolder.kt").read_text()
    swift = (SWIFT / "EdgeFolder.swift").read_text()
    react = (REACT / "edge.js").read_text()
    opened = r'"(?:\$\{directory\}/)?([\w.-]+\.(?:json|onnx|jinja|bin))"'
    for source in (kotlin, swift, react):
        names = set(re.findall(opened, source)) | set(re.findall(r"`\$\{directory\}/([\w.]+)`", source))
        assert "edge.json" in names and [name for name in names if not (folder / name).is_file()] == []
    keys = set(re.findall(r'get(?:String|JSONObject|JSONArray|Int|Long|Double)\("(\w+)"\)', kotlin))
    keys |= set(re.findall(r"let (\w+): (?!URL|EdgeManifest)", swift.partition("struct EdgeFolder")[0]))
    keys |= set(re.findall(r"manifest\.(?:graph\.|generation\.)?(\w+)", react)) - {"graph", "generation"}
    keys -= {"errorDescription"}
    assert keys and keys <= all_keys(said), keys - all_keys(said)


def all_keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for each in value.values() for key in all_keys(each)}
    return {key for each in value for key in all_keys(each)} if isinstance(value, list) else set()


def test_genai_loads_the_folder_and_its_first_choices_are_among_the_probes(
    folder: Path, decoder_folder: Path
) -> None:
    said = json.loads((folder / "edge.json").read_text())
    model = genai.Model(str(folder))
    assert said["probes"]
    for probe in said["probes"]:
        (found,) = continued(model, probe["token_ids"], 1)
        least = probe["top_logits"][0] - 2 * said["bound"]
        pairs = zip(probe["top_ids"], probe["top_logits"], strict=True)
        possible = [id for id, logit in pairs if logit >= least]
        assert found in possible or len(possible) == len(probe["top_ids"])


def continued(model: Any, ids: list[int], tokens: int) -> list[int]:
    """Greedily, by the calls that the sources make."""
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + tokens, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return list(generator.get_sequence(0))[len(ids) :]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, list[int]], tuple[int, str]]:
    edge = tmp_path_factory.mktemp("sample") / "edge.mjs"  # what a bundler takes for a module node does not
    edge.write_bytes((REACT / "edge.js").read_bytes())
    modules = node_modules(Settings(home=TEST_HOME))

    def run(folder: Path, ids: list[int]) -> tuple[int, str]:
        command = [str(node()), str(RUN), str(edge), str(modules), str(folder), json.dumps(ids), str(TOKENS)]
        made = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return made.returncode, made.stdout.strip() or made.stderr

    return run


def test_react_native_s_code_answers_as_genai_does(
    folder: Path, sample: Callable[[Path, list[int]], tuple[int, str]]
) -> None:
    model = genai.Model(str(folder))
    ids = [int(one) for one in genai.Tokenizer(model).encode(PROMPT)]
    code, said = sample(folder, ids)
    assert code == 0, said
    assert json.loads(said) == continued(model, ids, TOKENS)


def test_react_native_s_code_refuses_other_bytes_and_other_numbers(
    folder: Path, tmp_path: Path, sample: Callable[[Path, list[int]], tuple[int, str]]
) -> None:
    for name in ("bytes", "numbers", "web"):
        (tmp_path / name).mkdir()
        for file in folder.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "bytes" / "weights-000.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    manifest = json.loads((folder / "edge.json").read_text())
    manifest["probes"][0]["top_logits"][0] += manifest["bound"] + 1
    (tmp_path / "numbers" / "edge.json").write_text(json.dumps(manifest))
    (tmp_path / "web" / "edge.json").write_text(
        json.dumps({**manifest, "target": "web", "form": "int4-qdq", "runtime": {"name": "onnxruntime-web"}})
    )
    assert sample(tmp_path / "bytes", [1]) == (1, f"{weights} is not the file that was written")
    code, said = sample(tmp_path / "numbers", [1])
    assert code == 1 and said.startswith("this phone computes other numbers than the model's probes")
    code, said = sample(tmp_path / "web", [1])
    assert code == 1 and said.endswith("was made for web: make one with --target android or ios")
