"""What answers may and may not feel of each other: turns at prefill, slow grammars, seeds, whose prefix it is."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn.errors import InvalidInput
from serve.engines.onnx.decoding import generation as generation_module
from serve.engines.onnx.decoding import prefilling as prefilling_module
from serve.engines.onnx.decoding.batch import Batch
from serve.engines.onnx.decoding.decoder import Decoder
from serve.engines.onnx.decoding.generation import Generation
from serve.engines.onnx.decoding.prefilling import (
    BESIDE_CHUNK_TOKENS,
    LONG_AT_ONCE,
    LONG_TOKENS,
    OLDEST_EVERY,
    Beside,
    Prefilling,
    chunk_of,
)
from serve.engines.onnx.decoding.sampling import SamplingOptions
from serve.engines.onnx.requests import RequestReader
from tests.serve.engines.onnx.decoding.test_scheduler import TOPICS, Running, said

AMBIGUOUS = "start: e\ne: e e | e e e | /./"
LONG = "word " * 800


@pytest.fixture
def running(decoder: Decoder) -> Iterator[Running]:
    started = Running(decoder, batch_invariant=False)
    yield started
    started.close()


@pytest.fixture
def ask(reader: RequestReader) -> Callable[..., Generation]:
    def make(text: str, tokens: int = 24, options: dict[str, Any] | None = None, **more: Any) -> Generation:
        return said(reader, text, tokens, options or {}, **more)

    return make


def always_beside(prefilling: Prefilling, generation: Generation, running: int, waiting: int) -> bool:
    return running > 0 and prefilling.row_of(generation) > 1


def bits(running: Running, generation: Generation) -> list[tuple[int, float]]:
    """Each token with its log-probability, to the last bit."""
    sampled = [one for piece in running.pieces[generation] for one in piece.sampled]
    return [(one.token, one.logprobs.chosen) for one in sampled]


def finish(running: Running, *generations: Generation) -> list[list[tuple[int, float]]]:
    running.scheduler.submit(list(generations))
    running.finish(list(generations))
    return [bits(running, generation) for generation in generations]


def test_a_short_prompt_does_not_wait_for_a_long_one(
    running: Running, ask: Callable[..., Generation]
) -> None:
    stream = ask("Count to a million.", 300, {"logit_bias": {2: -100.0}})
    running.scheduler.submit([stream])
    running.wait(lambda: len(running.pieces[stream]) > 2)
    long, short = ask(LONG, 1), ask("Hello!", 2)
    running.scheduler.submit([long])
    running.scheduler.submit([short])
    running.finish([short])
    assert not running.pieces[long]
    running.finish([long])
    running.scheduler.cancel(stream)


def test_long_prompts_take_turns_with_whoever_came_first_and_leave_room_for_short_ones(
    reader: RequestReader,
) -> None:
    def prompt(tokens: int) -> Generation:
        return Generation(
            [300] * tokens,
            codec=reader.codec,
            eos_ids=[],
            options=SamplingOptions(),
            max_new_tokens=1,
            stop=[],
        )

    prefilling = Prefilling(8, 64)
    long = [prompt(LONG_TOKENS + 1) for _ in range(LONG_AT_ONCE)]
    for generation in long:
        prefilling.add(generation)
    short = prompt(LONG_TOKENS)
    assert prefilling.takes(short) and not prefilling.takes(prompt(LONG_TOKENS + 1))
    row = prefilling.add(short)
    assert prefilling.row_of(short) == row == 7 - LONG_AT_ONCE
    turns = [prefilling.next() for _ in range(2 * OLDEST_EVERY)]
    assert turns.count(short) == 2 * OLDEST_EVERY - 2 and turns.count(long[0]) == 2


def test_a_slow_grammar_is_ended_by_name_and_holds_up_nobody(
    running: Running, ask: Callable[..., Generation], reader: RequestReader
) -> None:
    [a] = reader.codec.encode("a")
    constraint = reader.constraints.compile(AMBIGUOUS, "response_format.grammar")
    steady = ask("Count to a million.", 900, {"logit_bias": {2: -100.0}})
    endless = ask("a", 400, {"logit_bias": {a: 100.0}}, constraint=constraint)
    running.scheduler.submit([steady])
    running.wait(lambda: len(running.pieces[steady]) > 2)
    before = steady.new_tokens
    running.scheduler.submit([endless])
    running.finish([endless])
    meanwhile = steady.new_tokens - before
    error = running.pieces[endless][-1].error
    assert isinstance(error, InvalidInput) and error.param == "response_format.grammar"
    assert "too long to follow" in error.message or "too complex" in error.message
    assert 2 < endless.new_tokens < meanwhile
    running.scheduler.cancel(steady)


def test_nobody_waits_for_a_grammar_that_is_to_tell_how_a_full_answer_ends(
    running: Running, ask: Callable[..., Generation], reader: RequestReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_module, "OUTCOME_S", 1.0)
    constraint = reader.constraints.compile("start: /a+/", "response_format.grammar")
    constraint.quick = False
    steady = ask("Count to a million.", 900, {"logit_bias": {2: -100.0}})
    full = ask("a", 1, constraint=constraint)
    running.scheduler.submit([steady])
    running.wait(lambda: len(running.pieces[steady]) > 2)
    free = threading.Event()
    release = threading.Timer(10, free.set)
    release.start()
    before = [constraint.lanes.slow.submit(free.wait) for _ in range(2)]
    running.scheduler.submit([full])
    running.wait(lambda: full.new_tokens == 1)
    before_steps = steady.new_tokens
    running.finish([full])
    assert running.pieces[full][-1].finish == "length" and not free.is_set()
    assert steady.new_tokens > before_steps + 5
    release.cancel()
    free.set()
    assert all(one.result() for one in before)
    running.scheduler.cancel(steady)


@pytest.mark.parametrize(("tokens", "budget"), list(product(range(2, 12), range(2, 7))))
def test_no_token_of_a_prompt_is_computed_alone(reader: RequestReader, tokens: int, budget: int) -> None:
    generation = Generation(
        [300] * tokens, codec=reader.codec, eos_ids=[], options=SamplingOptions(), max_new_tokens=1, stop=[]
    )
    while generation.cached < tokens:
        chunk = chunk_of(generation, budget)
        assert 2 <= chunk <= budget + 1
        generation.cached += chunk
    assert generation.cached == tokens


def test_a_grammar_that_takes_minutes_to_compile_is_refused(reader: RequestReader) -> None:
    bomb = "start: R\nR: " + " & ".join(f"/.*a.{{{n}}}/" for n in range(1, 25))
    with pytest.raises(InvalidInput, match="takes more than") as refused:
        reader.constraints.compile(bomb, "response_format.grammar")
    assert refused.value.param == "response_format.grammar"
    assert reader.constraints.compile("start: R\nR: /a.*/ & /.*b/", "response_format.grammar")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_seeded_answer_has_the_same_bits_in_any_company(
    decoder: Decoder, ask: Callable[..., Generation], temperature: float
) -> None:
    options = {"temperature": temperature, "seed": 7, "top_logprobs": 0, "logit_bias": {2: -100.0}}

    def seeded(topic: str) -> Generation:
        return ask(f"Tell me about {topic}.", 30, options, seeded=True)

    def others() -> list[Generation]:
        return [ask(f"Describe {topic}.", 30, {"temperature": 1.0, "seed": 1}) for topic in TOPICS[4:9]]

    quiet = Running(decoder, batch_invariant=False, prefix_tokens=0)
    alone = [finish(quiet, seeded(topic))[0] for topic in TOPICS[:3]]
    quiet.close()

    crowded = Running(decoder, batch_invariant=False)
    together = finish(crowded, *others(), *(seeded(topic) for topic in TOPICS[:3]), *others())[5:8]
    again = finish(crowded, *(seeded(topic) for topic in TOPICS[:3]))  # prompts and answers are known now
    crowded.close()

    scarce = Running(decoder, batch_invariant=False, kv_tokens=200, prefix_tokens=100)
    preempted = finish(scarce, *others(), *(seeded(topic) for topic in TOPICS[:3]))[5:]
    assert scarce.scheduler.counters.preemptions > 0
    scarce.close()
    assert together == alone
    assert again == alone
    assert preempted == alone


def test_a_seeded_next_turn_has_the_same_bits_whether_the_last_is_known_or_not(
    decoder: Decoder, ask: Callable[..., Generation], reader: RequestReader
) -> None:
    options = {"seed": 7, "top_logprobs": 0, "logit_bias": {2: -100.0}}
    first = ask("Tell me about bread and rivers. " * 4, 40, options)
    known = Running(decoder, batch_invariant=False)
    finish(known, first)
    answer = reader.codec.tokenizer.decode(first.tokens[first.prompt_tokens : first.length].tolist())
    history = "Tell me about bread and rivers. " * 4 + "<|im_end|>\n<|im_start|>assistant\n" + answer
    reused, fresh = (ask(history + " And?", 20, options, seeded=True) for _ in range(2))
    [with_prefix] = finish(known, reused)
    known.close()
    quiet = Running(decoder, batch_invariant=False, prefix_tokens=0)
    [without] = finish(quiet, fresh)
    quiet.close()
    assert 16 <= reused.reused_tokens <= first.prompt_tokens
    assert with_prefix == without


def test_nothing_computed_for_one_client_is_reused_for_another(
    running: Running, ask: Callable[..., Generation]
) -> None:
    prompt = "Tell me about rivers. " * 20
    first = ask(prompt, 30, {"logit_bias": {2: -100.0}}, salt="one")
    running.scheduler.submit([first])
    running.wait(lambda: len(running.pieces[first]) > 2)
    beside = ask(prompt, 2, salt="two")
    finish(running, beside)
    running.finish([first])
    later, mine = ask(prompt, 2, salt="three"), ask(prompt, 2, salt="one")
    finish(running, later)
    finish(running, mine)
    assert [beside.reused_tokens, later.reused_tokens] == [0, 0]
    assert mine.reused_tokens >= 95


@pytest.mark.parametrize("beside", [False, True])
def test_rows_change_places_when_every_row_is_taken(
    decoder: Decoder, ask: Callable[..., Generation], beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(decoder, prefill_chunk=16)
    alone = [
        finish(running, ask(f"Tell me about {topic}. " * 8, 6, {"top_logprobs": 0}))[0] for topic in TOPICS
    ]
    running.close()
    if beside:
        monkeypatch.setattr(Prefilling, "belongs_beside", always_beside)
    full = Running(decoder, prefill_chunk=16, prefix_tokens=0)
    together = [ask(f"Tell me about {topic}. " * 8, 6, {"top_logprobs": 0}) for topic in TOPICS]
    assert finish(full, *together) == alone
    assert full.scheduler.batch.used_tokens == 0
    full.close()
    assert np.isfinite([value for answer in alone for _, value in answer]).all()


def test_what_is_computed_beside_the_steps_has_the_bits_that_it_has_alone(
    decoder: Decoder, ask: Callable[..., Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"top_logprobs": 0, "logit_bias": {2: -100.0}}

    def seeded() -> list[Generation]:
        return [ask(f"Tell me about {topic}. " * 30, 6, options, seeded=True) for topic in TOPICS[:4]]

    quiet = Running(decoder, batch_invariant=False, prefix_tokens=0)
    alone = [finish(quiet, one)[0] for one in seeded()]
    quiet.close()
    monkeypatch.setattr(Prefilling, "belongs_beside", always_beside)
    begun: list[Generation] = []
    begin = Beside.begin
    monkeypatch.setattr(Beside, "begin", lambda self, one, row: (begun.append(one), begin(self, one, row))[1])
    busy = Running(decoder, batch_invariant=False, prefix_tokens=0)
    stream, left = ask("Count to a million.", 900, {"logit_bias": {2: -100.0}}), ask(LONG, 1)
    busy.scheduler.submit([stream])
    busy.wait(lambda: len(busy.pieces[stream]) > 2)
    busy.scheduler.submit([left])
    busy.wait(lambda: left in begun)
    busy.scheduler.cancel(left)
    together = seeded()
    assert finish(busy, *together) == alone
    assert all(begun.count(one) >= 2 for one in together)
    busy.scheduler.cancel(stream)
    busy.wait(busy.idle) if not busy.idle() else None
    assert not busy.pieces[left]
    busy.close()


def test_a_prompt_whose_row_another_needs_moves_with_all_that_is_computed_beside(
    int4_bundle: Path, ask: Callable[..., Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(int4_bundle, rows=4, threads=2, context=1024)
    options = {"top_logprobs": 0, "logit_bias": {2: -100.0}}
    long, again = (ask(LONG, 6, options, seeded=True) for _ in range(2))
    moved: list[int] = []
    at_rest = Batch.at_rest

    def noting(self: Batch, row: int) -> tuple[Generation | None, int]:
        other, held = at_rest(self, row)
        moved.append(held - other.cached if other else 0)
        return other, held

    monkeypatch.setattr(Batch, "at_rest", noting)
    monkeypatch.setattr(
        Prefilling, "belongs_beside", lambda _, one, running, waiting: one is long and running > 0
    )
    busy = Running(decoder, batch_invariant=False, prefix_tokens=0)
    stream, first, second = (ask(f"Count {word}.", 200, options) for word in ("up", "down", "stars"))
    busy.scheduler.submit([stream])
    busy.wait(lambda: len(busy.pieces[stream]) > 2)
    busy.scheduler.submit([first, long])
    busy.wait(lambda: len(busy.pieces[first]) > 1)
    busy.scheduler.submit([second])
    busy.finish([long])
    assert max(moved) > 1
    for one in (stream, first, second):
        busy.scheduler.cancel(one)
    busy.close()
    quiet = Running(decoder, batch_invariant=False, prefix_tokens=0)
    assert finish(quiet, again) == [bits(busy, long)]
    quiet.close()


def test_a_prompt_that_is_computed_beside_and_cancelled_ends_with_its_chunk(
    running: Running, ask: Callable[..., Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Prefilling, "belongs_beside", always_beside)
    stream, long = ask("Count to a million.", 900, {"logit_bias": {2: -100.0}}), ask(LONG, 1)
    running.scheduler.submit([stream])
    running.wait(lambda: len(running.pieces[stream]) > 2)
    running.scheduler.submit([long])
    running.wait(lambda: running.scheduler.batch.prefilling.away is long)
    running.scheduler.cancel(long)
    running.wait(lambda: not running.scheduler.batch.prefilling)
    assert 0 < long.cached <= 2 * BESIDE_CHUNK_TOKENS and not running.pieces[long]
    running.scheduler.cancel(stream)


def test_a_chunk_fits_the_steps_beside_it_and_grows_for_a_prompt_that_waits_long(
    reader: RequestReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefilling = Prefilling(8, 128)
    generation = said(reader, LONG, 1, {})
    generation.admitted_ns = time.time_ns()
    prefilling.add(generation)
    assert prefilling.budget(running=0) == 256 and prefilling.budget(running=1) == 128
    prefilling.took(64, 0.64)
    prefilling.stepped(0.2)
    assert prefilling.budget(running=4) == 40
    for _ in range(50):
        prefilling.stepped(0.01)
    assert prefilling.budget(running=1) == 4
    assert not prefilling.belongs_beside(generation, running=1, waiting=0), "it is short"
    monkeypatch.setattr(prefilling_module, "LONG_TOKENS", 100)
    assert prefilling.belongs_beside(generation, running=1, waiting=0)
    assert not prefilling.belongs_beside(generation, running=1, waiting=2)
    generation.admitted_ns -= int(900e9)
    assert 50 < prefilling.budget(running=1) <= 64
