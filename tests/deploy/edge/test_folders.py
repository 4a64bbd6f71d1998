"""Folders for devices: whole, the same bytes each time, and with the model's own numbers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, numpy_helper

from deploy.edge.build import build, write_files
from deploy.edge.check.check import check
from deploy.edge.check.operators import CannotRun
from deploy.edge.check.sessions import native, place_for
from deploy.edge.manifest import (
    MANIFEST,
    WEBGPU_GRAPH,
    EdgeManifest,
    describe,
    read_manifest,
    verify_files,
    write_manifest,
)
from deploy.edge.plan import plan
from deploy.edge.probes import Differs, Probes, apart, asked, compute, request_of
from deploy.edge.targets import TARGETS
from deploy.edge.weights import PART_BYTES, Content, place
from everlearn.errors import Corrupt, NotFound, Unsupported
from everlearn.progress import silent
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.deploy.edge.models import register_decoder


def test_a_folder_says_what_it_holds(web_folder: Path) -> None:
    made = read_manifest(web_folder)
    verify_files(web_folder, made)
    assert (made.model, made.version, made.target, made.form) == ("decoder", 1, "web", "int4-qdq")
    assert made.download_bytes == sum(size(web_folder / one.path) for one in made.files)
    assert (web_folder / "index.html").is_file() and (web_folder / "everlearn_web" / "index.js").is_file()
    assert made.generation and made.generation.eos_token_ids == [2]
    assert made.measured and "onnxruntime-web in node" in made.measured.on and made.memory_is == "measured"
    assert {"tokenizer.json", "chat_template.jinja", "model.onnx", "weights-000.bin"} <= {
        one.path for one in made.files
    }
    written = (web_folder / MANIFEST).read_bytes()
    assert written == json.dumps(json.loads(written), sort_keys=True, separators=(",", ":")).encode()


def size(file: Path) -> int:
    return file.stat().st_size


def test_the_weights_are_the_bundles_own_bytes(tiny: Settings, web_folder: Path) -> None:
    registry = Registry(tiny)
    bundle = registry.path(registry.resolve("decoder@1"))
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    made = read_manifest(web_folder)
    parts = {name: (web_folder / name).read_bytes() for name in made.tensors}
    placed = {
        one.name: parts[name][one.offset : one.offset + one.bytes]
        for name in parts
        for one in made.tensors[name]
    }
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            external_data_helper.load_external_data_for_tensor(tensor, str(bundle))
            assert placed.pop(tensor.name) == tensor.raw_data
    assert placed == {}


def test_no_tensor_is_in_two_files_and_none_beyond_32_mib_shares_its(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    sizes = {"a": 20 * 2**20, "b": 20 * 2**20 + 3, "c": 40 * 2**20, "d": 5, "e": 7}
    for name in sizes:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.uint8), name))
    contents = {name: Content(length, lambda: iter(())) for name, length in sizes.items()}
    parts = place([model], contents)
    assert [[span.name for span in part.spans] for part in parts] == [["a"], ["b"], ["c"], ["d", "e"]]
    assert parts[3].spans[1].offset == 16 and parts[2].size_bytes > PART_BYTES


def test_the_same_model_gives_the_same_bytes(tiny: Settings, linux_folder: Path, tmp_path: Path) -> None:
    again = build(tiny, "decoder@1", "linux-x64", tmp_path / "again")
    first = read_manifest(linux_folder)
    assert plain(again) == plain(first)
    assert json.loads((linux_folder / "genai_config.json").read_text())["search"]["max_length"] == 1024


def plain(made: EdgeManifest) -> EdgeManifest:
    return made.model_copy(update={"measured": None, "memory_bytes": 0})


def test_webgpus_graph_of_the_same_weights_has_the_same_numbers(web_folder: Path) -> None:
    made = read_manifest(web_folder)
    request = request_of(web_folder, made.task, made.form, made.graph, asked(made.probes))
    said = native().ask(request | {"graphs": [str(web_folder / WEBGPU_GRAPH)], "session": {}, "steps": 1})
    assert apart(said, made.probes) < 1e-3
    graph = onnx.load(web_folder / WEBGPU_GRAPH, load_external_data=False).graph
    assert "MatMulNBits" in {node.op_type for node in graph.node}


def test_a_folder_of_8_bits_and_one_of_an_encoder_run_in_the_webs_runtime(
    tiny: Settings, tmp_path: Path
) -> None:
    """Building compares what onnxruntime-web computes with the probes, and refuses what differs."""
    small = build(tiny, "decoder@1", "web", tmp_path / "small", form="int8-dynamic")
    encoder = build(tiny, "encoder@1", "web", tmp_path / "encoder")
    assert small.measured and encoder.measured and encoder.graph.hidden == 64
    tensors = {one.name for spans in small.tensors.values() for one in spans}
    assert any(name.endswith(".int8") for name in tensors) and not any(
        name.endswith(".codes") for name in tensors
    )
    parts = sorted(one.path for one in encoder.files)
    assert parts == ["config.json", "model.onnx", "tokenizer.json", "weights-000.bin"]


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_every_form_of_other_families_predicts_alike(family: str, tmp_path: Path) -> None:
    """Qwen2 has biases and an output layer of its own, Gemma 3 norms, scaled embeddings and windows of its own."""
    settings = Settings(home=tmp_path / "home")
    register_decoder(settings, tmp_path / "parent", family)
    registry = Registry(settings)
    version = registry.resolve("decoder@1")
    probes: list[Probes] = []
    for form, apart_at_most in (("int4-qdq", 1e-5), ("int4-matmulnbits", 0.05), ("int8-dynamic", 0.05)):
        made, folder = plan(version, registry.path(version), "web", form), tmp_path / form
        folder.mkdir()
        write_files(made, folder, silent)
        request = request_of(folder, "generate", form, made.graph, [])
        probes = probes or compute(folder, "generate", form, made.graph)[0]
        said = native().ask(request | {"prompts": asked(probes), "steps": 1})
        assert apart(said, probes) < apart_at_most


def test_genai_answers_from_a_folder_for_linux(linux_folder: Path) -> None:
    import onnxruntime_genai as og

    made = read_manifest(linux_folder)
    model = og.Model(str(linux_folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=16, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(made.probes[0].token_ids)
    generator.generate_next_token()
    assert int(generator.get_next_tokens()[0]) == made.probes[0].top_ids[0]  # type: ignore[union-attr]


@pytest.mark.parametrize("file", ["weights-000.bin", "model.onnx", "tokenizer.json"])
def test_a_changed_byte_is_found_by_name(
    tiny: Settings, linux_folder: Path, tmp_path: Path, file: str
) -> None:
    copy = shutil.copytree(linux_folder, tmp_path / "copy")
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    with pytest.raises(Corrupt, match=f"{file} is not the file that was written"):
        check(tiny, copy)


def test_a_file_too_many_or_too_few_is_found_by_name(
    tiny: Settings, linux_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(linux_folder, tmp_path / "copy")
    (copy / "extra.py").write_text("")
    with pytest.raises(Corrupt, match=r"extra.py is not listed"):
        check(tiny, copy)
    (copy / "extra.py").rename(copy / "tokenizer.json")
    (copy / "weights-000.bin").unlink()
    with pytest.raises(Corrupt, match=r"(tokenizer.json|weights-000.bin) is"):
        check(tiny, copy)


def test_an_operator_that_a_folders_runtime_lacks_is_named(
    tiny: Settings, linux_folder: Path, tmp_path: Path
) -> None:
    """As where the runtime on a machine is another than the folder was made with."""
    copy = shutil.copytree(linux_folder, tmp_path / "copy")
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "QuickGelus"
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    made = read_manifest(copy)
    files = [describe(copy, "model.onnx") if one.path == "model.onnx" else one for one in made.files]
    write_manifest(copy, made.model_copy(update={"files": files}))
    with pytest.raises(CannotRun, match=r"ai.onnx:QuickGelus .1 nodes, .* is missing"):
        check(tiny, copy)


def test_numbers_that_differ_are_refused(tiny: Settings, linux_folder: Path, tmp_path: Path) -> None:
    """As a driver or a kernel with other results would show: here it is the manifest that says others."""
    copy = shutil.copytree(linux_folder, tmp_path / "copy")
    fields = json.loads((copy / MANIFEST).read_text())
    fields["probes"][1]["top_logits"][3] += 2 * fields["bound"]
    (copy / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(Differs, match="must not serve this folder"):
        check(tiny, copy)


def test_a_manifest_that_leads_out_of_its_folder_or_is_none_is_refused(
    linux_folder: Path, tmp_path: Path
) -> None:
    fields = json.loads((linux_folder / MANIFEST).read_text())
    with pytest.raises(NotFound, match=r"it has no edge\.json"):
        read_manifest(tmp_path)
    fields["files"][0]["path"] = "../model.onnx"
    (tmp_path / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(Corrupt, match="not a path inside"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps(fields | {"format": "everlearn-edge/2"}))
    with pytest.raises(Unsupported, match="everlearn-edge/1"):
        read_manifest(tmp_path)
    for broken in ("[]", "{", "\x00", "[" * 100_000):
        (tmp_path / MANIFEST).write_text(broken)
        with pytest.raises(Corrupt):
            read_manifest(tmp_path)


def test_a_killed_build_leaves_nothing_that_the_next_is_hindered_by(tiny: Settings, tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "weights-000.bin").write_bytes(b"half")
    (tmp_path / ".out.lock").touch()
    build(tiny, "encoder@1", "linux-x64", tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_the_command_checks_a_folder_on_this_cpu_and_on_one_without_avx2(
    tiny: Settings, linux_folder: Path
) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "everlearn", "deploy", "check", str(linux_folder), "--json"],
        env={"EVERLEARN_HOME": str(tiny.home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    found = json.loads(said.stdout)
    bound = read_manifest(linux_folder).bound
    assert all(one["difference"] <= bound for one in found["sessions"])
    if shutil.which("qemu-x86_64-static", path="/usr/bin:/bin"):
        assert "without AVX2" in found["sessions"][1]["on"] and found["skipped"] == []
    else:
        assert "qemu" in found["skipped"][0]


def test_the_tables_newest_opset_is_the_newest_that_the_web_opens(tiny: Settings, tmp_path: Path) -> None:
    graphs: dict[int, str] = {}
    for opset in (TARGETS["web"].runtime.opset, TARGETS["web"].runtime.opset + 1):
        values = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:]
        )
        opsets = [onnx.helper.make_opsetid("", opset)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
        graphs[opset] = str(tmp_path / f"{opset}.onnx")
        Path(graphs[opset]).write_bytes(model.SerializeToString())
    said = place_for(tiny, "web").ask({"operators": list(graphs.values())})
    assert said["runtime"] == TARGETS["web"].runtime.version
    assert list(said["failures"]) == [graphs[TARGETS["web"].runtime.opset + 1]]
