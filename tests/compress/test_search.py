"""A size is asked for, and what comes obeys it."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress import plan as plans
from compress.plan import follow
from compress.recipe import CompressPlan, PlannedTarget, Prune, Teaching
from compress.search import SMALLEST, DecoderSizes, best_of, parse_target, prunings, without_pruning
from everlearn.errors import InvalidInput
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from train.evaluate.held_out_text import held_out_text
from train.recipe import Data


@pytest.fixture(scope="module")
def shape(parent: Path) -> DecoderSizes:
    return DecoderSizes.read(parent)


def test_a_target_is_read_and_a_wrong_one_says_how_it_is_written() -> None:
    assert parse_target("size<=60MB").size_bytes == 60_000_000
    assert parse_target(" size <= 1.5GB ").size_bytes == 1_500_000_000
    assert parse_target(" speed >= 2.5x ").speedup == 2.5
    for wrong in ("60MB", "size<60MB", "size<=60", "size<=0MB", "speed>=2", "speed>=0x", "size<=-3MB"):
        with pytest.raises(InvalidInput, match=r"size<=60MB \(kB, MB or GB\) or as speed>=2x"):
            parse_target(wrong)


def test_the_matrices_are_counted(shape: DecoderSizes) -> None:
    assert (shape.layers, shape.ffn, shape.tied) == (2, 96, True)
    assert shape.attention == 64 * (64 + 32 + 32 + 64)
    assert shape.feed_forward == 3 * 64 * 96
    assert shape.head == 512 * 64


def test_the_more_room_the_more_bits(shape: DecoderSizes) -> None:
    everything = without_pruning(shape, 10**9)
    assert everything[0].high_precision_fraction == 1.0 and everything[-1] == SMALLEST
    sizes = [shape.int4_bytes(one) for one in everything]
    assert sizes == sorted(sizes, reverse=True)
    assert without_pruning(shape, sizes[-1]) == [SMALLEST]
    assert without_pruning(shape, sizes[-1] - 1) == []


def test_prunings_keep_as_much_as_fits(shape: DecoderSizes) -> None:
    limit = shape.int4_bytes(SMALLEST) - 5_000
    found = prunings(shape, limit)
    assert found["layers"] == Prune(layers=1)
    assert found["width"] == Prune(ffn=64)
    assert shape.int4_bytes(SMALLEST, 2, 96) > limit >= shape.int4_bytes(SMALLEST, 2, 64)
    assert prunings(shape, 20_000) == {}


def test_the_pruning_that_changes_least_is_taken_with_its_layers_named() -> None:
    tried = {"layers": Prune(layers=3), "width": Prune(ffn=64)}
    trials = {
        "layers": {"divergence": 0.2, "dropped": [4, 7]},
        "width": {"divergence": 0.3, "dropped": []},
    }
    assert best_of(trials, tried) == Prune(drop=(4, 7))
    trials["layers"]["divergence"] = 0.4
    assert best_of(trials, tried) == Prune(ffn=64)


def test_a_predicted_size_is_the_written_size_and_the_last_version_obeys(
    tiny_settings: Settings, shape: DecoderSizes
) -> None:
    expected = shape.int4_bytes(PlannedTarget(weights="gptq", high_precision_fraction=0.5))
    plan = CompressPlan(target=f"size<={(expected + 500) / 1000}kB")
    *_, version = follow(tiny_settings, "tiny@1", plan)
    assert version.manifest.size_bytes <= expected + 500
    share = version.manifest.recipe["export"]["high_precision_fraction"]
    predicted = shape.int4_bytes(PlannedTarget(weights="gptq", high_precision_fraction=share))
    assert version.manifest.size_bytes == pytest.approx(predicted, rel=0.1)
    assert [one.ref for one in follow(tiny_settings, "tiny@1", plan)][-1] == version.ref


def test_below_4_bits_something_goes_and_the_rest_is_healed(
    tiny_settings: Settings, shape: DecoderSizes, tmp_path: Path
) -> None:
    limit = shape.int4_bytes(SMALLEST) - 5_000
    plan = CompressPlan(target=f"size<={limit / 1000}kB")
    with pytest.raises(InvalidInput, match=r"MB at 4 bits.*must be healed.*heal\.data\.train"):
        list(follow(tiny_settings, "tiny@1", plan))
    (tmp_path / "corpus.txt").write_text(held_out_text().text)
    heal = Teaching(
        data=Data(train=(tmp_path / "corpus.txt",), held_fraction=0.2),
        sequence_tokens=128,
        batch_tokens=512,
        steps=4,
    )
    with pytest.raises(InvalidInput, match="no pruning brings it to size<=20kB"):
        list(follow(tiny_settings, "tiny@1", plan.model_copy(update={"target": "size<=20kB", "heal": heal})))
    smaller, healed, version = follow(tiny_settings, "tiny@1", plan.model_copy(update={"heal": heal}))
    assert version.manifest.size_bytes <= limit
    line = [one.ref for one in Registry(tiny_settings).lineage(version.ref)]
    assert line == [version.ref, healed.ref, smaller.ref, "tiny@1"]
    assert healed.manifest.recipe["distill"]["quantize_to"] == "int4-onnx"
    assert version.manifest.metrics["divergence"] < 1e-3  # it has the weights that were healed


def test_a_speed_is_reached_by_8_bits_or_by_as_few_bytes_as_it_takes(
    tiny_settings: Settings, shape: DecoderSizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiny models are all as fast as their overhead: their speed here is said to be what their bytes would make it."""
    registry = Registry(tiny_settings)
    parent = registry.resolve("tiny@1")

    def by_bytes(directory: Path, *_: object) -> dict[str, float]:
        size = next(one for one in registry.versions("tiny") if registry.path(one) == directory)
        return {"decode_tokens_per_s": 1e8 / size.manifest.size_bytes}

    monkeypatch.setattr(plans, "speed_of", by_bytes)
    (int8,) = follow(tiny_settings, "tiny@1", CompressPlan(target="speed>=1.01x"))
    assert int8.manifest.recipe["export"]["to"] == "int8-onnx"
    wanted = parent.manifest.size_bytes / (0.97 * int8.manifest.size_bytes)
    made = list(follow(tiny_settings, "tiny@1", CompressPlan(target=f"speed>={wanted:.4f}x")))
    assert made[0].ref == int8.ref
    assert made[-1].manifest.size_bytes <= 0.971 * int8.manifest.size_bytes
    assert made[-1].manifest.recipe["export"]["to"] == "int4-onnx"
    with pytest.raises(
        InvalidInput, match=r"for speed>=9x, about 0\.0 MB, |no pruning brings it to speed>=9x"
    ):
        list(follow(tiny_settings, "tiny@1", CompressPlan(target="speed>=9x")))
