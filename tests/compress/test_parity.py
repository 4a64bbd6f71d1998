"""The gate that every target passes: the same weights, and so the same predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compress.measure_decoder import held_windows
from compress.parity import SAME_GRAPH, Drifted, apart, carried_logits, refuse_another
from train.evaluate import load_causal_lm, torch_logits


@pytest.mark.parametrize("divergence", [float("nan"), float("inf"), 0.0011])
def test_what_is_not_a_small_number_is_refused(divergence: float) -> None:
    with pytest.raises(Drifted, match="nats a token away from torch"):
        refuse_another(divergence, SAME_GRAPH, "the graph", "")
    refuse_another(0.0009, SAME_GRAPH, "the graph", "")


def test_another_model_with_the_same_weights_is_seen(parent: Path, tmp_path: Path) -> None:
    other = shutil.copytree(parent, tmp_path / "other")
    config = json.loads((parent / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    (other / "config.json").write_text(json.dumps(config))
    windows = held_windows(parent, 512)
    weights = load_causal_lm(parent).state_dict()
    theirs = load_causal_lm(other)
    assert (
        apart(carried_logits(parent, weights, windows), torch_logits(theirs, windows), windows) > SAME_GRAPH
    )
    assert apart(carried_logits(other, weights, windows), torch_logits(theirs, windows), windows) < 1e-6


def test_a_tensor_that_is_not_there_is_named(parent: Path) -> None:
    weights = load_causal_lm(parent).state_dict()
    weights.pop("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(Drifted, match=r"layers\.1\.mlp\.up_proj"):
        carried_logits(parent, weights, held_windows(parent, 512))
