"""Every way in, with real files, a real pip and a hub that speaks the hub's protocol; and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer

from compress.targets.gguf import plain, write_gguf
from everlearn.errors import Corrupt, EverlearnError, InvalidInput, NotFound, Unavailable, Unsupported
from everlearn.importing import sources
from everlearn.importing.catalogue import Entry, Wheel
from everlearn.importing.gguf_reader import read_gguf
from everlearn.importing.sources import import_model
from everlearn.progress import silent
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.support.tiny_models import train_tokenizer
from train.evaluate.held_out_text import held_out_text
from train.models.load import load_causal_lm

REPOSITORY = Path(__file__).resolve().parents[3]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def assert_nothing_is_there(settings: Settings) -> None:
    assert not Registry(settings).list()
    assert [path.name for path in (settings.home / "tmp").iterdir() if path.is_dir()] == []


# Directories -------------------------------------------------------------------------------------------------


def test_a_directory_becomes_a_version_with_the_files_it_needs(settings: Settings, copy: Path) -> None:
    (copy / "README.txt").write_text("not needed")
    (copy / "runs").mkdir()
    (copy / "runs" / "events.txt").write_text("not needed")
    version = import_model(settings, str(copy), name="tiny")
    manifest = version.manifest
    assert (version.ref, version.format, version.task) == ("tiny@1", "safetensors", "generate")
    assert manifest.architecture == "LlamaForCausalLM"
    model = load_causal_lm(Registry(settings).path(version))
    assert manifest.parameters == sum(weight.numel() for weight in model.parameters())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= manifest.files.keys()
    assert not {"README.txt", "runs/events.txt"} & manifest.files.keys()


def write(file: Path, content: str | bytes) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def set_in_config(directory: Path, **values: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


SPOILERS = {
    "pytorch_model.bin": lambda d: write(d / "pytorch_model.bin", b"\x80\x02"),
    "optimizer.pt": lambda d: write(d / "optimizer.pt", b"\x80\x02"),
    "deep/inside/x.pkl": lambda d: (d / "deep").mkdir() or write(d / "deep" / "inside" / "x.pkl", b"\x80"),
    "modeling_evil.py": lambda d: write(d / "modeling_evil.py", "import os"),
    "auto_map": lambda d: set_in_config(d, auto_map={"AutoModel": "modeling_evil.Evil"}),
    "_attn_implementation_internal": lambda d: set_in_config(d, _attn_implementation_internal="evil/kernels"),
    "model.safetensors": lambda d: write(
        d / "model.safetensors", (d / "model.safetensors").read_bytes()[:-9]
    ),
    "tokenizer.json": lambda d: (d / "tokenizer.json").unlink(),
    "config.json is not": lambda d: write(d / "config.json", "{"),
    "has no config.json": lambda d: (d / "config.json").unlink(),
    "model-2.safetensors, which is missing": lambda d: write(
        d / "model.safetensors.index.json", '{"weight_map": {"a": "model-2.safetensors"}}'
    ),
    "leads out of the model's directory": lambda d: (d / "vocab.txt").symlink_to("/etc/hostname"),
    "chat_template.jinja": lambda d: write(d / "chat_template.jinja", "{{ ''.__class__.__mro__ }}"),
}


@pytest.mark.parametrize("named", SPOILERS)
def test_a_directory_with_code_or_damage_is_refused_by_name(
    settings: Settings, copy: Path, named: str
) -> None:
    SPOILERS[named](copy)
    with pytest.raises(InvalidInput, match=re.escape(named)):
        import_model(settings, str(copy), name="tiny")
    assert_nothing_is_there(settings)


def test_a_snapshot_of_the_hubs_own_cache_is_taken(settings: Settings, llama: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--o--n" / "blobs", tmp_path / "models--o--n" / "snapshots" / COMMIT
    shutil.copytree(llama, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert import_model(settings, str(snapshot), name="tiny").ref == "tiny@1"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"architectures": ["ViTForImageClassification"]}, "ViTForImageClassification"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ],
)
def test_what_is_no_language_model_in_original_weights_is_not_offered(
    settings: Settings, copy: Path, values: dict[str, Any], said: str
) -> None:
    set_in_config(copy, **values)
    with pytest.raises(Unsupported, match=said):
        import_model(settings, str(copy), name="tiny")


def test_an_unknown_source_is_met_with_what_exists(settings: Settings) -> None:
    with pytest.raises(NotFound, match="did you mean 'smollm2'"):
        import_model(settings, "smolm2")
    with pytest.raises(NotFound, match="does not exist"):
        import_model(settings, "./nowhere/model.gguf")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf:HuggingFaceTB/SmolLM2-135M-Instruct@v1.0", "smollm2-135m-instruct"),
        ("/models/My Model..Q4_1.GGUF", "my-model.q4-1"),
        ("~/x/tiny/", "tiny"),
        ("/models/modèle été.gguf", "modele-ete"),
        ("/models/Größe", "grosse"),
        ("/models/模型", "moxing"),
        ("/models/Москва.gguf", "moskva"),
        ("smollm2", "smollm2"),
    ],
)
def test_a_name_is_made_from_the_source(source: str, name: str) -> None:
    assert sources.default_name(source) == name


# GGUF --------------------------------------------------------------------------------------------------------


def test_a_gguf_file_gives_the_same_model(settings: Settings, llama: Path, gguf: Path) -> None:
    version = import_model(settings, str(gguf))
    directory = Registry(settings).path(version)
    assert (version.model, version.manifest.recipe["import"]["dtype"]) == ("tiny-model", "float32")
    ids = torch.tensor([[1, 77, 300, 9, 41, 2, 100]])
    with torch.inference_mode():
        logits = load_causal_lm(directory)(ids).logits
        torch.testing.assert_close(logits, load_causal_lm(llama)(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_gguf_tokenizer_splits_as_the_original_and_ends_where_the_file_says(
    settings: Settings, llama: Path, gguf: Path
) -> None:
    from transformers import AutoTokenizer

    directory = Registry(settings).path(import_model(settings, str(gguf)))
    ours, original = Tokenizer.from_file(str(directory / "tokenizer.json")), train_tokenizer()
    texts = [
        held_out_text().text[:5000],
        "in  2024, 17 \u2581 caf\u00e9 \U0001f600\n\n x <|im_end|> <0x41>",
        " a",
        "",
    ]
    for text in texts:
        ids = ours.encode(text).ids
        assert ids == original.encode(text).ids
        assert ours.decode(ids, skip_special_tokens=False) == text
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|im_start|>user\nhi<|im_end|>\n"
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == 2


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_quantized_weights_are_kept_to_half_precision(
    settings: Settings, llama: Path, tmp_path: Path, kind: str
) -> None:
    from gguf import GGMLQuantizationType, dequantize, quantize

    write_gguf(llama, tmp_path / "q.gguf", plain(kind), silent)
    directory = Registry(settings).path(import_model(settings, str(tmp_path / "q.gguf")))
    stored = load_file(directory / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    quantization = GGMLQuantizationType[kind]
    original = load_file(llama / "model.safetensors")[name].numpy()
    expected = dequantize(quantize(original, quantization), quantization)
    assert stored[name].dtype == torch.float16
    np.testing.assert_allclose(stored[name].float().numpy(), expected, rtol=1e-3, atol=1e-4)


def test_a_cut_gguf_file_is_refused_in_one_line_and_leaves_nothing(
    settings: Settings, gguf: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf.read_bytes()[:-1000])
    with pytest.raises(InvalidInput, match=r"^cut\.gguf is damaged or cut short"):
        import_model(settings, str(cut))
    assert_nothing_is_there(settings)


def test_a_file_of_another_kind_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InvalidInput, match="is not a GGUF file"):
        import_model(settings, str(tmp_path / "x.gguf"))


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_damages_a_gguf_file_ends_in_one_of_our_errors_or_in_nothing(
    gguf: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(gguf.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, 4000))] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(0, len(content)))
    (tmp_path / "damaged.gguf").write_bytes(content[:length])
    try:
        read_gguf(tmp_path / "damaged.gguf")
    except EverlearnError as error:
        assert isinstance(error, InvalidInput)


# Killed ------------------------------------------------------------------------------------------------------


def test_a_killed_import_leaves_nothing_listed_and_the_next_one_works(settings: Settings, gguf: Path) -> None:
    environment = os.environ | settings.environment()
    command = [sys.executable, "-m", "everlearn", "import", str(gguf), "--name", "tiny"]
    running = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((settings.home / "tmp").glob("stage-*/model.safetensors")):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    deadline = time.monotonic() + 30
    while list((settings.home / "tmp").glob("stage-*/")):  # what it had started may write for a moment more
        assert time.monotonic() < deadline
        Registry(settings)
        time.sleep(0.05)
    assert_nothing_is_there(settings)
    assert import_model(settings, str(gguf), name="tiny").ref == "tiny@1"


# Catalogue ---------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel with a model in it, where pip looks; the hub is off."""
    file = tmp_path / "shelf" / "tiny_model-1.0-py3-none-any.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        for path in llama.iterdir():
            archive.write(path, f"tiny_model/model/{path.name}")
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('this ran')")
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(file.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    names = [path.name for path in llama.iterdir()]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Wheel("tiny-model", "1.0", digest, {f"tiny_model/model/{name}": name for name in names})


def enter(monkeypatch: pytest.MonkeyPatch, wheel: Wheel) -> None:
    monkeypatch.setattr(
        sources, "CATALOGUE", {"tiny": Entry(hub="org/tiny", commit=COMMIT, licence="MIT", wheel=wheel)}
    )


def test_a_catalogue_name_comes_from_its_wheel_where_no_hub_answers(
    settings: Settings, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, wheel)
    manifest = import_model(settings, "tiny").manifest
    assert manifest.recipe["import"]["wheel"] == "tiny-model==1.0"
    assert manifest.recipe["import"]["licence"] == "MIT"
    assert not [path for path in manifest.files if path.endswith(".py")]
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert import_model(settings, "tiny").ref == "tiny@2"  # the wheel was kept


def test_a_gguf_file_in_parts_is_put_together_from_its_wheels(
    settings: Settings, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, wheels = gguf.read_bytes(), []
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    parts = {"LICENSE.md": b"Ask the owner.", "x.gguf": content[:5000], "x.gguf.1": content[5000:]}
    for at, (member, part) in enumerate(parts.items()):
        file = tmp_path / f"tiny_part{at}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(f"tiny/{member}", part)
            info = f"tiny_part{at}-1.0.dist-info"
            archive.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{at}\nVersion: 1.0\n"
            )
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        wheels.append(Wheel(f"tiny-part{at}", "1.0", digest, {f"tiny/{member}": member.removesuffix(".1")}))
    first, *more = wheels
    entry = Entry(hub=None, commit=None, licence="Terms", wheel=first, more=tuple(more))
    monkeypatch.setattr(sources, "CATALOGUE", {"tiny": entry})
    version = import_model(settings, "tiny")
    made = version.manifest.recipe["import"]
    assert (made["wheel"], made["licence"]) == ("tiny-part0==1.0", "Terms")
    assert made["more_wheels"] == {one.requirement: one.sha256 for one in more}
    assert made["sha256"] == hashlib.sha256(content).hexdigest()
    assert (Registry(settings).path(version) / "LICENSE.md").read_text() == "Ask the owner."


def test_a_wheel_with_other_bytes_is_refused(
    settings: Settings, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, Wheel(wheel.distribution, wheel.version, "0" * 64, wheel.members))
    with pytest.raises(Corrupt, match="sha256"):
        import_model(settings, "tiny")
    assert_nothing_is_there(settings)


def test_a_wheel_that_pip_cannot_find_is_told_in_pips_words(
    settings: Settings, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, Wheel("tiny-model", "9.9", "0" * 64, wheel.members))
    with pytest.raises(Unavailable, match=re.escape("found for tiny-model==9.9")):
        import_model(settings, "tiny")
