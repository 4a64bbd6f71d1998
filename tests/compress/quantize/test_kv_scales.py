"""Keys and values at 8 bits: a quarter of the memory for each token, and the answers stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Ernie4_5Config, LlamaConfig, Phi3Config, PhiConfig

from compress.export import build_export
from compress.quantize.kv_scales import QMAX, write_scales
from compress.recipe import Calibration, CompressRecipe
from serve.engines.onnx.decoding.decoder import Decoder
from tests.support.architecture_rows import FAMILIES, SHAPE, rope
from train.models.load import load_causal_lm

SEEN = Calibration(tokens=1024)
IDS = np.arange(5, 65)


@pytest.fixture(scope="module")
def decoders(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoder]:
    made: dict[str, Decoder] = {}
    for kept in ("float32", "int8"):
        directory = tmp_path_factory.mktemp(kept)
        recipe = CompressRecipe(to="int8-onnx", kv_cache=kept, calibration=SEEN)
        _, metrics = build_export(parent, directory, "generate", recipe)
        assert metrics["divergence"] < 0.001
        made[kept] = Decoder(directory, rows=3, threads=2, drafts=3)
    return made


def answered(decoder: Decoder, row: int = 0) -> np.ndarray:
    """Logits (21, vocab) after 40 tokens, and after each of 20 more."""
    found = [decoder.prefill(row, IDS[:40], 0)]
    for at in range(40, 60):
        found.append(decoder.decode(IDS[at : at + 1], np.array([at + 1]))[0])
    return np.array(found)


def test_a_token_takes_a_quarter_of_the_memory_and_the_answers_stay(
    parent: Path, decoders: dict[str, Decoder]
) -> None:
    model = load_causal_lm(parent)
    with torch.no_grad():
        expected = model(torch.from_numpy(IDS)[None]).logits[0, 39:].numpy()
    assert decoders["float32"].kv_bytes_per_token == 4 * decoders["int8"].kv_bytes_per_token
    assert {one.array.dtype.name for one in decoders["int8"].caches} == {"int8"}
    apart = {kept: np.abs(answered(one) - expected).max() for kept, one in decoders.items()}
    assert 0 < apart["int8"] < 2 * apart["float32"] < 0.2 * np.abs(expected).max()


def test_guesses_are_checked_and_prefixes_copied_at_8_bits_too(decoders: dict[str, Decoder]) -> None:
    decoder = decoders["int8"]
    assert decoder.drafts == 3
    whole = answered(decoder)
    block = decoder.read(0, 40)
    assert block.dtype == np.int8 and block.any()
    decoder.release(0)
    decoder.write(0, block, 40)
    again = [decoder.decode(IDS[at : at + 1], np.array([at + 1]))[0] for at in range(40, 60)]
    assert np.array_equal(np.array(again), whole[1:])


def test_scales_hold_the_largest_of_each_channel_wherever_it_turns_up(parent: Path, tmp_path: Path) -> None:
    model = load_causal_lm(parent)
    ids = torch.arange(3, 131).view(2, 64)
    write_scales(tmp_path / "scales.json", model, ids)
    scales = json.loads((tmp_path / "scales.json").read_bytes())["scales"]
    cache = model.get_decoder()(input_ids=ids, use_cache=True).past_key_values.layers
    for layer in (0, 1):
        values = cache[layer].values.abs().amax((0, 2)).flatten() / QMAX
        assert torch.allclose(torch.tensor(scales["v_scales"][layer]), values, rtol=1e-5)
        keys = cache[layer].keys.abs().amax((0, 2)) / QMAX  # (kv_heads, head)
        held = torch.tensor(scales["k_scales"][layer]).view(keys.shape)
        assert torch.equal(held[:, :8], held[:, 8:]) and (held >= keys * 0.99999).all()


PHI3 = {key: value for key, value in SHAPE.items() if key != "head_dim"} | {"hidden_size": 128}
HALF = rope("default", partial_rotary_factor=0.5)
TURNED = {
    "a head's halves (Llama)": (LlamaConfig(**SHAPE), 7, 15),
    "halves of a part of the head (Phi)": (PhiConfig(**FAMILIES[PhiConfig], rope_parameters=HALF), 7, 15),
    "halves of a part of the head (Phi 3)": (Phi3Config(**PHI3, rope_parameters=HALF), 7, 15),
    "neighbours (Ernie 4.5)": (Ernie4_5Config(**SHAPE, rope_parameters=rope("default")), 14, 15),
}
"""Which channels of a head positions turn into each other, and the pair that they turn slowest."""


@pytest.mark.parametrize("name", TURNED)
def test_scales_hold_keys_at_positions_that_the_calibration_set_did_not_reach(
    name: str, tmp_path: Path
) -> None:
    """Of a pair of channels that turns slowly one is large; far on, the other one is."""
    config, large, other = TURNED[name]
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    decoder, ids = model.get_decoder(), torch.arange(3, 67)[None]
    enlarge_key(decoder.layers[0].self_attn, large)
    write_scales(tmp_path / "scales.json", model, ids)
    scales = torch.tensor(json.loads((tmp_path / "scales.json").read_bytes())["scales"]["k_scales"][0])
    with torch.no_grad():
        far = decoder(input_ids=ids, position_ids=torch.arange(4000, 4064)[None], use_cache=True)
    keys = far.past_key_values.layers[0].keys.abs().amax((0, 2))  # (kv_heads, head)
    assert (keys <= 2**0.5 * QMAX * scales.view(keys.shape) * 1.001).all()
    assert keys[0, other] > 5 * keys[0].median(), "the other channel has become large"


def enlarge_key(attention: Any, channel: int) -> None:
    """The first head's keys are thirty times as large in this channel."""
    joined = getattr(attention, "qkv_proj", None)
    first = attention.o_proj.in_features if joined is not None else 0  # the queries stand before the keys
    with torch.no_grad():
        (joined if joined is not None else attention.k_proj).weight[first + channel] *= 30
