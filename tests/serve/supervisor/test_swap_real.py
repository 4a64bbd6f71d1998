"""Swaps of a real model on the ONNX engine, under clients that know every word they must read."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.serve.swap import measure
from everlearn.registry.registry import Registry
from everlearn.settings import Settings

SMALL = {"EVERLEARN_ONNX__SLOTS": "4", "EVERLEARN_ONNX__CONTEXT": "256"}


@pytest.fixture
def int4_bundle(real_settings: Settings) -> Path:
    registry = Registry(real_settings)
    return registry.path(registry.resolve("smollm2"))


@pytest.mark.slow
def test_ten_swaps_of_a_real_model_lose_no_answer_and_change_no_word(int4_bundle: Path) -> None:
    result = asyncio.run(measure(int4_bundle, clients=3, swaps=10, compare=False, **SMALL))
    assert len(result.swap_s) == 10
    assert result.swapping.versions == {"swapped@1", "swapped@2"}
    assert result.swapping.failed == [] and result.swapping.mixed == []
    assert len(result.swapping.first_token_s) >= 10
