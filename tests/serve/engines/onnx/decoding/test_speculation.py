"""Guessed tokens change how fast an answer comes, and no bit of it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engines.onnx.decoding.decoder import Decoder
from serve.engines.onnx.decoding.draft import COST, CREDIT_PER_STEP, FIRST_CREDIT, Draft, continuation
from serve.engines.onnx.decoding.generation import Generation
from serve.engines.onnx.requests import RequestReader
from tests.serve.engines.conftest import start_engine
from tests.serve.engines.onnx.decoding.test_scheduler import Running, said

DRAFTS = 6
ORDER = (
    "Order 48213 of 3 March 2026. Customer: Ingrid Halvorsen, Storgata 14, 5020 Bergen, Norway. "
    "Items: 2 x wool blanket (grey), 1 x oil lamp, 4 x candle holder. Paid by card, total 2,340 NOK."
)
COPY = f"Repeat this text word for word:\n\n{ORDER}"
PATTERN = "Go on with this: " + "red, green, blue, yellow, " * 12
QUESTIONS = [
    f"Copy the order below as a list with one line per field:\n\n{ORDER}",
    COPY,
    "Write a letter to a friend about moving to a new city.",
    "Why do people travel?",
    PATTERN,
    f"Go on with this: {'one two three four five six seven ' * 8}",
    f"Say this again and again: {'the cat sat on the mat. ' * 10}",
]

Ask = Callable[..., Generation]


@pytest.fixture(scope="module")
def drafting(int4_bundle: Path) -> Decoder:
    return Decoder(int4_bundle, rows=4, threads=2, context=1024, drafts=DRAFTS)


@pytest.fixture
def speculating(drafting: Decoder) -> Iterator[Running]:
    started = Running(drafting)
    yield started
    started.close()


@pytest.fixture
def plain(decoder: Decoder) -> Iterator[Running]:
    started = Running(decoder)
    yield started
    started.close()


@pytest.fixture
def ask(reader: RequestReader) -> Ask:
    def make(text: str, tokens: int = 40, stop: list[str] | None = None, **options: object) -> Generation:
        schema = options.pop("schema", None)
        constraint = (
            reader.constraints.compile(f"start: %json {json.dumps(schema)}", "schema") if schema else None
        )  # type: ignore[arg-type]
        return said(reader, text, tokens, options, stop=stop or [], constraint=constraint)

    return make


def answer(running: Running, generation: Generation) -> tuple[str, list[int], str | None]:
    running.scheduler.submit([generation])
    (text,) = running.finish([generation])
    tokens = generation.tokens[generation.prompt_tokens : generation.length].tolist()
    return text, tokens, running.pieces[generation][-1].finish


@pytest.mark.parametrize("known", [5, 255, 600])
def test_several_tokens_at_once_give_the_bits_of_one_at_a_time_in_company(
    decoder: Decoder, drafting: Decoder, random_tokens: np.ndarray, known: int
) -> None:
    tokens = np.append(random_tokens, random_tokens)[: known + DRAFTS + 1]
    for one in (decoder, drafting):
        one.prefill(0, tokens[:known], 0)
    decoder.prefill(1, tokens[:9], 0)
    one_by_one = [
        decoder.decode(np.array([token, 5]), np.array([at + 1, 10]))[0]
        for at, token in enumerate(tokens[known:], start=known)
    ]
    for width in range(2, DRAFTS + 2):
        at_once = drafting.verify(tokens[known : known + width], known + 1)
        assert np.array_equal(at_once, one_by_one[:width])


NOTHING_TO_COPY = QUESTIONS[2:4]


def test_greedy_text_is_the_same_and_copying_takes_fewer_steps(
    plain: Running, speculating: Running, ask: Ask
) -> None:
    counters = speculating.scheduler.counters
    for question in [one for one in QUESTIONS if one not in NOTHING_TO_COPY]:
        assert answer(speculating, ask(question, 64)) == answer(plain, ask(question, 64))
    assert counters.accepted_draft_tokens > 0.5 * counters.draft_tokens
    assert counters.decode_steps < 0.75 * counters.generated_tokens
    for question in NOTHING_TO_COPY:
        assert answer(speculating, ask(question, 64)) == answer(plain, ask(question, 64))
    assert counters.accepted_draft_tokens > 0.5 * counters.draft_tokens
    of_prompts = len(QUESTIONS)  # the first token of each comes with its prompt
    assert counters.decode_steps == counters.generated_tokens - counters.accepted_draft_tokens - of_prompts
    assert counters.generated_tokens == plain.scheduler.counters.generated_tokens


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_p": 0.9, "seed": 3},
        {"temperature": 0.3, "top_k": 20, "seed": 4, "frequency_penalty": 0.2, "presence_penalty": 0.1},
        {"logit_bias": {30: -100.0, 28: -5.0}},
        {"stop": ["Bergen"]},
        {
            "schema": {
                "type": "object",
                "properties": {"customer": {"type": "string"}},
                "required": ["customer"],
            }
        },
    ],
    ids=["seed", "penalties", "bias", "stop", "schema"],
)
def test_every_way_of_choosing_tokens_chooses_the_same(
    plain: Running, speculating: Running, ask: Ask, options: dict[str, object]
) -> None:
    for question in (PATTERN, COPY):
        assert answer(speculating, ask(question, **options)) == answer(plain, ask(question, **options))
    assert speculating.scheduler.counters.draft_tokens > 0


def test_log_probabilities_are_the_same(plain: Running, speculating: Running, ask: Ask) -> None:
    said = []
    for running in (plain, speculating):
        generation = ask(QUESTIONS[1], 32, top_logprobs=2)
        answer(running, generation)
        said.append([one for piece in running.pieces[generation] for one in piece.sampled])
    assert said[0] == said[1]
    assert len(said[0]) == 32


@pytest.mark.parametrize("tokens", [1, 2, 3, 17])
def test_an_answer_ends_at_its_limit_whatever_was_guessed_beyond(
    speculating: Running, ask: Ask, tokens: int
) -> None:
    generation = ask(QUESTIONS[1], tokens)
    _, said, finish = answer(speculating, generation)
    assert (len(said), finish) == (tokens, "length")


def test_an_answer_that_others_join_and_leave_goes_on_with_the_same_text(
    plain: Running, speculating: Running, ask: Ask
) -> None:
    expected = answer(plain, ask(QUESTIONS[0], 80))
    joined = ask(QUESTIONS[0], 80)
    speculating.scheduler.submit([joined])
    speculating.wait(lambda: len(speculating.pieces[joined]) > 20)
    others = [ask(question, 6) for question in QUESTIONS]
    speculating.scheduler.submit(others)
    speculating.finish([joined, *others])
    assert joined.tokens[joined.prompt_tokens : joined.length].tolist() == expected[1]


def test_the_row_that_is_seen_several_times_gives_its_memory_back(
    drafting: Decoder, random_tokens: np.ndarray
) -> None:
    drafting.prefill(0, random_tokens[:500], 0)
    cache = drafting.keys[0]
    assert cache.array[0].any()
    assert all(
        np.shares_memory(view, cache.first_row) and np.array_equal(view, cache.array[0])
        for view in cache.first_row
    )
    drafting.release(0)
    assert not cache.array[0].any()
    assert not cache.first_row.any()


def test_speculation_is_off_where_attention_reads_before_all_is_written(int4_bundle: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from serve.engines.onnx.decoding.decoder import Decoder;"
        f"print('drafts', Decoder(Path(sys.argv[1]), rows=2, threads=2, context=256, drafts={DRAFTS}).drafts)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(int4_bundle)],
        env=os.environ | {"ORT_GQA_DISABLE_FLASH_ATTENTION": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "drafts 0" in done.stdout
    assert "speculative_tokens is off" in done.stdout + done.stderr


def test_what_followed_the_latest_place_of_the_longest_end_is_guessed() -> None:
    assert continuation(np.array([1, 2, 3, 4, 9, 2, 3, 4, 7, 8, 2, 3, 4]), 2).tolist() == [7, 8]
    assert continuation(np.array([1, 2, 3, 4, 9, 2, 3, 4, 7, 1, 2, 3, 4]), 2).tolist() == [9, 2]
    assert continuation(np.array([5, 5, 5, 5, 5, 5]), 6).tolist() == [5]
    assert continuation(np.array([1, 2, 7, 1, 2]), 6).tolist() == []
    assert continuation(np.array([1]), 6).tolist() == []


@given(st.lists(st.integers(0, 4), max_size=200))
def test_wrong_guesses_cost_an_answer_at_most_a_fixed_share_of_its_steps(came_true: list[int]) -> None:
    draft, tokens = Draft(), np.tile(np.arange(4), 8)
    lost = 0.0
    for wanted in came_true:
        guess = draft.propose(tokens, DRAFTS)
        accepted = min(wanted, len(guess))
        draft.settle(len(guess), accepted)
        lost += COST * len(guess) - accepted
    assert lost <= FIRST_CREDIT + CREDIT_PER_STEP * len(came_true) + 1e-9


def test_the_setting_reaches_the_engine_and_its_metrics_count(
    int4_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLEARN_ONNX__SPECULATIVE_TOKENS", str(DRAFTS))
    monkeypatch.setenv("EVERLEARN_ONNX__SLOTS", "2")
    process, client = start_engine(int4_bundle, "smollm2")
    body = {"model": "smollm2", "messages": [{"role": "user", "content": QUESTIONS[1]}], "temperature": 0}
    usage = client.post("/v1/chat/completions", json=body | {"max_tokens": 32}).json()["usage"]
    lines = [line.split() for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    counted = {name.removeprefix("everlearn_engine_"): float(value) for name, value in lines}
    assert process.stdin
    process.stdin.close()
    assert process.wait(10) == 0
    assert usage["completion_tokens"] == 32
    assert counted["draft_tokens_total"] > 0
    assert counted["decode_steps_total"] + counted["accepted_draft_tokens_total"] == 31
