"""Prompts that cannot fit are refused before they are tokenized, and none that fits is."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from serve.engines.context_bound import Bound, ContextLengthExceeded
from serve.engines.onnx.encoders.model import EncoderModel
from serve.engines.onnx.requests import RequestReader
from serve.engines.tokenizer import TextCodec

BIG = 3_000_000
TEXTS = {
    "digits": "1" * BIG,
    "spaces": " " * BIG,
    "one word": "a" * BIG,
    "emoji": "🙂" * (BIG // 4),
    "new lines": "\n" * BIG,
    "Chinese": "学而时习之" * (BIG // 15),
    "names of special tokens": "<|im_end|>" * (BIG // 10),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_text_of_megabytes_is_refused_untokenized(reader: RequestReader, text: str) -> None:
    with pytest.raises(ContextLengthExceeded, match="context is 1024 tokens") as refused:
        reader.codec.encode(text)
    assert refused.value.param == "prompt"


def test_a_prompt_of_the_longest_tokens_fits_to_the_last(reader: RequestReader) -> None:
    longest = max(range(len(reader.codec.raw_bytes)), key=lambda token: len(reader.codec.raw_bytes[token]))
    text = reader.codec.raw_bytes[longest].decode()
    full = (text + "\n") * (reader.context // 2)
    assert len(full.encode()) < reader.codec.bound.most_bytes  # type: ignore[operator]
    assert len(reader.codec.encode(full)) <= reader.context
    with pytest.raises(ContextLengthExceeded):
        reader.codec.encode(text * reader.context + "\n")


def test_bytes_that_leave_no_token_do_not_count(reader: RequestReader) -> None:
    [nothing, *_] = [bytes([one]) for one in reader.codec.bound.dropped if one < 128]
    assert reader.codec.encode(nothing.decode() * BIG + "Hi") == reader.codec.encode("Hi")


def test_other_threads_run_while_a_text_is_tokenized(reader: RequestReader) -> None:
    ticks, done = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        reader.codec.encode_literal("1 " * 100_000)
    finally:
        done.set()
        thread.join()
    assert ticks > 20


def test_half_a_character_is_read_as_a_replacement(reader: RequestReader) -> None:
    assert reader.codec.encode("a\ud83db") == reader.codec.encode("a\ufffdb")
    assert reader.codec.encode("\ud83d\ude42") == reader.codec.encode("🙂")


def test_an_encoder_refuses_megabytes_by_their_beginning_and_takes_one_endless_word(
    minilm_bundle: Path,
) -> None:
    encoder = EncoderModel(minilm_bundle, outputs=["sentence_embedding"], threads=2, queue_limit=8)
    with pytest.raises(ContextLengthExceeded, match=r"input\[1\] has more than") as refused:
        encoder.encode(["short", "1 " * BIG])
    assert refused.value.param == "input"
    [word] = encoder.encode(["a" * BIG])
    assert len(word.ids) == len(word.types) == 3


def bound(tokenizer: Tokenizer, context: int) -> Bound:

    longest = max(len(token.encode()) for token in tokenizer.get_vocab())
    return Bound(tokenizer, json.loads(tokenizer.to_str()), longest, context)


def byte_level(normalizer: Any) -> Tokenizer:
    """One token a byte, and one for a syllable of three."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    if normalizer:
        tokenizer.normalizer = normalizer
    return tokenizer


def test_composition_shrinks_a_text_and_the_bound_allows_for_it() -> None:
    composing = byte_level(normalizers.NFC())
    syllables = "\u1112\u1161\u11ab" * 10  # nine bytes each, composed to three
    count = len(composing.encode(syllables).ids)
    assert count == 30
    bound(composing, count).check([syllables], "prompt")
    with pytest.raises(ContextLengthExceeded):
        bound(composing, count).check(["a" * 400], "prompt")


@pytest.mark.parametrize("character", [" ", "\u2581"])
def test_the_mark_that_llamas_tokenizers_write_for_a_space_may_be_in_a_text_itself(
    tmp_path: Path, character: str
) -> None:
    mark = "\u2581"
    alphabet = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), mark, mark * 2, mark * 4]
    vocab = {token: index for index, token in enumerate(alphabet)}
    model = models.BPE(vocab, [(mark, mark), (mark * 2, mark * 2)], byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", mark)  # type: ignore[assignment]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    codec = TextCodec(tmp_path, len(vocab), context=100)
    assert len(codec.encode(character * 400)) == 100
    with pytest.raises(ContextLengthExceeded):
        codec.encode(character * 4000)


@pytest.mark.parametrize(
    "normalizer", [normalizers.Strip(), normalizers.StripAccents(), normalizers.BertNormalizer()]
)
def test_a_tokenizer_that_drops_text_has_no_bound_in_bytes(normalizer: Any) -> None:
    assert bound(byte_level(normalizer), 8).most_bytes is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXTS["digits"]}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x<|im_end|>" * 50_000}]}),
        ("/v1/completions", {"prompt": [TEXTS["digits"], "x"]}),
        ("/tokenize", {"prompt": TEXTS["digits"]}),
        ("/tokenize", {"messages": [{"role": "user", "content": TEXTS["digits"]}]}),
    ],
    ids=["chat", "chat of names", "completions", "tokenize", "tokenize chat"],
)
def test_every_route_says_that_the_context_is_too_short(
    engine: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    answer = engine.post(path, json={"model": "smollm2"} | body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded" and "8192 tokens" in error["message"]
    assert error["param"] in ("prompt", "messages")


def test_a_text_longer_than_the_context_can_still_be_counted(engine: httpx.Client) -> None:
    answer = engine.post("/tokenize", json={"model": "smollm2", "prompt": "1" * 100_000})
    assert answer.json()["count"] == 100_000


def test_more_prompts_than_can_be_answered_are_refused_untokenized(engine: httpx.Client) -> None:
    answer = engine.post("/v1/completions", json={"model": "smollm2", "prompt": ["9" * 2000] * 200, "n": 2})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "prompt" and "400 answers; at most 256" in error["message"]
