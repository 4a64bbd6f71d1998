"""``everlearn compare``: what it says is what was measured, and what cannot be compared is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from compress.export import export_onnx
from compress.measure.compare import compare
from compress.measure.quality import quality, words_right
from compress.measure.report import plot, print_compared, undominated
from everlearn.cli.commands import app
from everlearn.errors import InvalidInput, NotFound
from everlearn.importing.sources import import_model
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.support.tiny_models import write_llama
from train.evaluate.comparison import Predictions
from train.evaluate.held_out_text import held_out_text


def test_a_word_is_right_where_all_its_tokens_are() -> None:
    targets = np.array([7, 1, 2, 1, 3, 1, 4, 4, 1])  # 1 begins a word
    same = targets.copy()
    wrong = targets.copy()
    wrong[[2, 5]] = 9
    zeros = np.zeros(len(targets))
    seen = Predictions(targets, zeros, zeros, zeros, reference_top=same, top=wrong)
    found = words_right(seen, lambda ids: ids == 1)
    assert found.tolist() == [[False, True], [True, True], [False, True]], (
        "the pieces at both ends are left out"
    )


def test_quality_beside_itself_is_perfect() -> None:
    random = np.random.default_rng(0)
    windows = random.integers(0, 50, (3, 20))
    logits = random.normal(size=(3, 20, 50)).astype(np.float32)
    found = quality(iter(logits), iter(logits), windows, lambda ids: ids < 10)
    assert (found.divergence, found.agreement, found.flips, found.ratio) == (0, 1, 0, 1)
    assert found.tokens == 57 and found.words > 0 and found.right == found.reference_right
    other = quality(iter(logits), iter(logits[:, :, ::-1]), windows, lambda ids: ids < 10)
    assert other.divergence > 0.1 and other.agreement < 0.5


@pytest.fixture(scope="module")
def refs(tiny_settings: Settings) -> list[str]:
    return ["tiny@1", *(export_onnx(tiny_settings, "tiny@1", to).ref for to in ("int8-onnx", "int4-onnx"))]


def test_versions_are_measured_on_the_same_texts_and_the_nearer_one_is_nearer(
    tiny_settings: Settings, refs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.txt").write_text(held_out_text().text[20_000:40_000])
    found = compare(tiny_settings, refs, [tmp_path / "own.txt"], tokens=1024, speed=False)
    assert [one.ref for one in found] == refs
    assert list(found[0].quality) == ["jargon", "own"]
    assert found[0].mean("divergence") == 0 and found[0].flips == 0
    assert 0 < found[1].mean("divergence") < found[2].mean("divergence")
    registry = Registry(tiny_settings)
    bundle = registry.resolve(refs[2]).manifest.metrics
    longer = compare(tiny_settings, [refs[0], refs[2]], tokens=bundle["tokens"] + 6, speed=False)[1]
    assert longer.quality["jargon"].divergence == pytest.approx(bundle["divergence"], abs=1e-5)
    assert {one.ref for one in undominated(found)} >= {refs[2]}
    print_compared([found[2], found[0], replace(found[1], ref="worse", size_bytes=10**9)])
    assert f"\nPareto front of size and divergence: {refs[2]}, {refs[0]}\n" in capsys.readouterr().out
    assert len(plot(found)["points"]) == 3


def test_the_page_and_the_json_hold_figures_speeds_and_answers(
    tiny_settings: Settings, refs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLEARN_HOME", str(tiny_settings.home))
    page = tmp_path / "report.html"
    said = CliRunner().invoke(
        app, ["compare", refs[1], refs[2], "--tokens", "512", "--report", str(page), "--json"]
    )
    assert said.exit_code == 0, said.output
    first, second = json.loads(said.stdout)
    assert first["texts"]["jargon"]["divergence"] == 0 < second["texts"]["jargon"]["divergence"]
    for one in (first, second):
        assert one["speed"]["decode_tokens_per_s"] > 0 and one["speed"]["engine"].startswith(
            "onnxruntime-genai"
        )
        assert len(one["speed"]["answers"]) == 3
    html = page.read_text()
    assert all(f"<b>{ref}</b>" in html for ref in refs[1:]) and "<svg" in html and "{{" not in html


def test_a_model_of_other_tokens_and_an_encoder_are_refused(
    tiny_settings: Settings, settings: Settings, refs: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="encoder@1 is an encoder"):
        compare(tiny_settings, ["tiny@1", "encoder@1"])
    with pytest.raises(NotFound, match=r"missing\.txt"):
        compare(tiny_settings, refs[:2], [tmp_path / "missing.txt"])
    write_llama(tmp_path / "other")
    tokenizer = tmp_path / "other" / "tokenizer.json"
    said = json.loads(tokenizer.read_text())
    vocabulary = said["model"]["vocab"]
    vocabulary["Ġa"], vocabulary["Ġb"] = vocabulary["Ġb"], vocabulary["Ġa"]
    tokenizer.write_text(json.dumps(said))
    version = import_model(tiny_settings, str(tmp_path / "other"), name="other")
    with pytest.raises(InvalidInput, match="different tokenizers"):
        compare(tiny_settings, ["tiny@1", version.ref])
