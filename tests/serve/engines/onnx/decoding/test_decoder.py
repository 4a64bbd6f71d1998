"""The graph run row by row: what may be shared, moved and split without changing a bit."""

import json
from pathlib import Path

import numpy as np
import pytest

from serve.engines.onnx.decoding.decoder import Decoder, DecoderConfig


def fill(decoder: Decoder, row: int, tokens: np.ndarray) -> np.ndarray:
    return decoder.prefill(row, tokens, 0).copy()


@pytest.mark.parametrize("chunk", [2, 33, 64, 299])
def test_a_prompt_in_chunks_gives_the_same_bits(
    decoder: Decoder, random_tokens: np.ndarray, chunk: int
) -> None:
    prompt = random_tokens[:300]
    whole = fill(decoder, 0, prompt)
    starts = [*range(0, 298, chunk)]
    for start, end in zip(starts, [*starts[1:], 300], strict=True):
        logits = decoder.prefill(1, prompt[start:end], start)
    assert np.array_equal(logits, whole)


def test_a_row_decodes_the_same_whatever_the_others_hold(decoder: Decoder, random_tokens: np.ndarray) -> None:
    lengths = [5, 64, 33, 250]
    for row, length in enumerate(lengths):
        fill(decoder, row, random_tokens[row : row + length])
    together = decoder.decode(np.full(4, 100), np.array(lengths) + 1).copy()
    for row, length in enumerate(lengths):
        fill(decoder, 0, random_tokens[row : row + length])
        fill(decoder, 1, random_tokens[:9])
        pair = decoder.decode(np.array([100, 5]), np.array([length + 1, 10]))
        assert np.array_equal(pair[0], together[row])


def test_copied_moved_and_restored_rows_go_on_identically(
    decoder: Decoder, random_tokens: np.ndarray
) -> None:
    prompt = random_tokens[:100]
    fill(decoder, 0, prompt)
    block = decoder.read(0, 100)
    decoder.copy(0, 3, 100)
    expected = decoder.prefill(0, random_tokens[100:140], 100).copy()
    assert np.array_equal(decoder.prefill(3, random_tokens[100:140], 100), expected)
    decoder.release(3)
    decoder.write(3, block, 100)
    assert np.array_equal(decoder.prefill(3, random_tokens[100:140], 100), expected)


def test_part_of_a_kept_prefix_is_enough(decoder: Decoder, random_tokens: np.ndarray) -> None:
    expected = fill(decoder, 0, random_tokens[:80])
    fill(decoder, 1, random_tokens[:100])
    decoder.write(2, decoder.read(1, 100), 60)
    assert np.array_equal(decoder.prefill(2, random_tokens[60:80], 60), expected)


def test_a_released_row_holds_no_memory(decoder: Decoder, random_tokens: np.ndarray) -> None:
    fill(decoder, 7, random_tokens[:500])
    assert decoder.keys[0].array[7].any()
    decoder.release(7)
    assert not decoder.keys[0].array[7].any()


def test_logits_stay_as_they_were_after_the_next_run(decoder: Decoder, random_tokens: np.ndarray) -> None:
    logits = decoder.prefill(0, random_tokens[:20], 0)
    before = logits.copy()
    for row in range(4):
        decoder.prefill(row, random_tokens[row : row + 200], 0)
    assert np.array_equal(logits, before)


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({"do_sample": True, "temperature": 0.2, "top_p": 0.9, "top_k": 50}, (0.2, 0.9, 50)),
        ({"do_sample": False, "temperature": 0.2, "top_p": 0.9, "top_k": 50}, (1.0, 1.0, 0)),
    ],
)
def test_a_model_may_bring_its_own_sampling(
    int4_bundle: Path, tmp_path: Path, search: dict[str, object], expected: tuple[float, float, int]
) -> None:
    config = json.loads((int4_bundle / "genai_config.json").read_text()) | {"search": search}
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    defaults = DecoderConfig.read(tmp_path).defaults
    assert (defaults.temperature, defaults.top_p, defaults.top_k) == expected
