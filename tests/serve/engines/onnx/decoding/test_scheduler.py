"""Continuous batching over the real model."""

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from everlearn.errors import RateLimited, Unavailable
from serve.engines.onnx.decoding.decoder import Decoder
from serve.engines.onnx.decoding.generation import Generation, Piece
from serve.engines.onnx.decoding.sampling import SamplingOptions
from serve.engines.onnx.decoding.scheduler import Delivery, Scheduler
from serve.engines.onnx.requests import RequestReader

TOPICS = [
    "rivers",
    "bridges",
    "bread",
    "music",
    "winter",
    "physics",
    "Rome",
    "chess",
    "sleep",
    "rockets",
    "birds",
    "glass",
]


class Running:
    """A scheduler and what it delivered."""

    def __init__(self, decoder: Decoder, **options: object) -> None:
        self.pieces: dict[Generation, list[Piece]] = defaultdict(list)
        self.news = threading.Condition()
        limits = {"kv_tokens": 8192, "prefix_tokens": 2048, "prefill_chunk": 64, "queue_limit": 64}
        self.scheduler = Scheduler(decoder, self.take, **{**limits, "batch_invariant": True, **options})  # type: ignore[arg-type]
        self.scheduler.start()

    def take(self, delivery: Delivery) -> None:
        with self.news:
            for generation, piece in delivery:
                self.pieces[generation].append(piece)
            self.news.notify_all()

    def wait(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        with self.news:
            assert self.news.wait_for(condition, timeout_s)

    def finish(self, generations: list[Generation]) -> list[str]:
        self.wait(lambda: all(self.pieces[g] and self.pieces[g][-1].last for g in generations))
        return ["".join(piece.text for piece in self.pieces[g]) for g in generations]

    def idle(self) -> bool:
        return self.scheduler.batch.active == 0 and not self.scheduler.waiting

    def close(self) -> None:
        self.scheduler.stop()
        self.scheduler.join(30)
        assert not self.scheduler.is_alive()


def said(
    reader: RequestReader, text: str, tokens: int, options: dict[str, object], **more: object
) -> Generation:
    """What a user's `text` asks for, greedy unless the sampling `options` say otherwise."""
    prompt = reader.codec.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
    return Generation(
        prompt,
        codec=reader.codec,
        eos_ids=reader.config.eos_ids,
        options=SamplingOptions(**({"temperature": 0.0} | options)),  # type: ignore[arg-type]
        max_new_tokens=tokens,
        **({"stop": []} | more),  # type: ignore[arg-type]
    )


@pytest.fixture
def running(decoder: Decoder) -> Iterator[Running]:
    started = Running(decoder)
    yield started
    started.close()


@pytest.fixture
def ask(reader: RequestReader) -> Callable[..., Generation]:
    def make(text: str, tokens: int = 24, flexible: bool = False, **options: object) -> Generation:
        return said(reader, text, tokens, options, flexible=flexible)

    return make


def test_text_is_the_same_alone_and_in_a_full_batch(running: Running, ask: Callable[..., Generation]) -> None:
    questions = [f"Tell me about {topic}." for topic in TOPICS]
    alone = [
        running.finish(one)[0]
        for question in questions
        if (one := [ask(question)]) and not running.scheduler.submit(one)
    ]
    together = [ask(question) for question in questions]
    running.scheduler.submit(together)
    assert running.finish(together) == alone
    assert len(set(alone)) > 6


def test_sampled_text_depends_on_the_seed_alone(running: Running, ask: Callable[..., Generation]) -> None:
    seeded = [ask("Tell me a story.", temperature=1.0, seed=seed) for seed in (1, 2, 1, 2, 3)]
    running.scheduler.submit(seeded)
    texts = running.finish(seeded)
    assert texts[0] == texts[2]
    assert texts[1] == texts[3]
    assert len(set(texts)) == 3


def test_requests_join_and_leave_at_any_time(running: Running, ask: Callable[..., Generation]) -> None:
    chance = random.Random(0)
    plain = {topic: [ask(f"Describe {topic}.", 20)] for topic in TOPICS}
    for one in plain.values():
        running.scheduler.submit(one)
        running.finish(one)
    expected = {topic: "".join(p.text for p in running.pieces[one[0]]) for topic, one in plain.items()}
    kept: list[tuple[str, int, Generation]] = []
    for _ in range(40):
        topic, tokens = chance.choice(TOPICS), chance.randint(1, 20)
        generation = ask(f"Describe {topic}.", tokens)
        running.scheduler.submit([generation])
        time.sleep(chance.random() * 0.05)
        if chance.random() < 0.3:
            running.scheduler.cancel(generation)
        else:
            kept.append((topic, tokens, generation))
    texts = running.finish([generation for _, _, generation in kept])
    for (topic, tokens, generation), text in zip(kept, texts, strict=True):
        assert expected[topic].startswith(text)
        assert generation.new_tokens == tokens or running.pieces[generation][-1].finish == "stop"
    running.wait(running.idle)
    assert running.scheduler.batch.used_tokens == 0


def test_a_cancelled_answer_frees_its_row_and_says_nothing_more(
    running: Running, ask: Callable[..., Generation]
) -> None:
    endless = ask("Count to a million.", 800)
    running.scheduler.submit([endless])
    running.wait(lambda: len(running.pieces[endless]) > 2)
    running.scheduler.cancel(endless)
    deadline = time.monotonic() + 2
    while not running.idle() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running.idle()
    said = len(running.pieces[endless])
    time.sleep(0.3)
    assert len(running.pieces[endless]) == said
    assert not running.pieces[endless][-1].last


def test_a_long_prompt_does_not_stall_running_streams(
    running: Running, ask: Callable[..., Generation]
) -> None:
    stream = ask("Count to a million.", 300)
    running.scheduler.submit([stream])
    running.wait(lambda: len(running.pieces[stream]) > 2)
    long = ask("word " * 800, 1)
    running.scheduler.submit([long])
    before = len(running.pieces[stream])
    running.finish([long])
    assert len(running.pieces[stream]) - before >= 800 // 64 - 2
    running.scheduler.cancel(stream)


def test_the_next_turn_computes_only_what_is_new(running: Running, ask: Callable[..., Generation]) -> None:
    first = ask("Tell me about rivers. " * 20, 4)
    running.scheduler.submit([first])
    running.finish([first])
    again = ask("Tell me about rivers. " * 20 + "And bridges?", 4)
    running.scheduler.submit([again])
    running.finish([again])
    assert again.reused_tokens >= 95
    fresh = running.scheduler.counters.prompt_tokens - (first.prompt_tokens - first.reused_tokens)
    assert fresh == again.prompt_tokens - again.reused_tokens


def test_answers_of_one_prompt_share_it_while_it_runs(
    running: Running, ask: Callable[..., Generation]
) -> None:
    three = [ask("Tell me about bread. " * 20, 30, temperature=1.0, seed=seed) for seed in range(3)]
    running.scheduler.submit(three)
    running.finish(three)
    assert [g.prompt_tokens - g.reused_tokens for g in three[1:]] == [2, 2]


def test_answers_beyond_the_memory_wait_or_come_back(
    decoder: Decoder, ask: Callable[..., Generation]
) -> None:
    running = Running(decoder, kv_tokens=200, prefix_tokens=100)
    many = [ask(f"Tell me a long story about {topic}.", 60, logit_bias={2: -100.0}) for topic in TOPICS]
    running.scheduler.submit(many)
    running.finish(many)
    assert [generation.new_tokens for generation in many] == [60] * len(many)
    assert running.scheduler.counters.preemptions > 0
    assert running.scheduler.batch.used_tokens + running.scheduler.batch.prefixes.tokens <= 200
    running.close()


def test_who_can_wait_gives_up_its_row_and_loses_no_word(
    running: Running, ask: Callable[..., Generation]
) -> None:
    stories = [(f"Tell me a long story about {topic}.", 48) for topic in TOPICS]
    alone = [ask(*story) for story in stories]
    running.scheduler.submit(alone)
    expected = running.finish(alone)
    patient = [ask(*story, flexible=True) for story in stories]
    running.scheduler.submit(patient)
    rows = running.scheduler.decoder.rows
    running.wait(lambda: sum(len(running.pieces[one]) > 2 for one in patient) == rows)
    urgent = [ask(f"What is {topic}?", 4) for topic in TOPICS[:3]]
    running.scheduler.submit(urgent)
    running.finish(urgent)
    assert sum(not running.pieces[one][-1].last for one in patient if running.pieces[one]) >= rows - 3
    assert running.scheduler.counters.preemptions >= 3
    assert running.finish(patient) == expected


def test_those_who_can_wait_come_last_and_take_no_place_in_the_line(
    decoder: Decoder, ask: Callable[..., Generation]
) -> None:
    running = Running(decoder, queue_limit=20)
    running.scheduler.submit([ask("Tell me about bread.", 30, flexible=True) for _ in range(20)])
    urgent = [ask("Tell me about music.", 30) for _ in range(20)]
    running.scheduler.submit(urgent)
    ended: list[Generation] = []
    running.wait(lambda: all(running.pieces[one] and running.pieces[one][-1].last for one in urgent))
    with running.news:
        ended = [one for one, pieces in running.pieces.items() if pieces[-1].last and one.flexible]
    assert len(ended) <= running.scheduler.decoder.rows
    running.close()


def test_a_full_queue_refuses(decoder: Decoder, ask: Callable[..., Generation]) -> None:
    running = Running(decoder, queue_limit=3)
    with pytest.raises(RateLimited, match="queue of 3"):
        running.scheduler.submit([ask("Hello") for _ in range(4)])
    running.close()


def test_more_requests_than_rows_all_get_their_turn(running: Running, ask: Callable[..., Generation]) -> None:
    many = [ask(f"What is {topic}?", 6) for topic in TOPICS * 2]
    running.scheduler.submit(many)
    texts = running.finish(many)
    assert texts[: len(TOPICS)] == texts[len(TOPICS) :]


def test_prompts_of_every_small_length_work(running: Running, reader: RequestReader) -> None:
    generations = [
        Generation(
            list(range(300, 300 + length)),
            codec=reader.codec,
            eos_ids=[],
            options=SamplingOptions(temperature=0),
            max_new_tokens=3,
            stop=[],
        )
        for length in (1, 2, 3, 63, 64, 65, 66, 127, 128, 129)
    ]
    running.scheduler.submit(generations)
    running.finish(generations)
    assert all(
        np.all(g.tokens[: g.prompt_tokens] == np.arange(300, 300 + g.prompt_tokens)) for g in generations
    )
    assert {g.new_tokens for g in generations} == {3}


def test_a_hand_over_sends_away_what_has_not_begun_and_ends_what_has(
    running: Running, ask: Callable[..., Generation]
) -> None:
    begun = [ask(f"Describe {topic}.", 40) for topic in TOPICS[: running.scheduler.decoder.rows]]
    running.scheduler.submit(begun)
    running.wait(lambda: all(running.pieces[generation] for generation in begun))
    waiting = [ask(f"Tell me about {topic}.") for topic in TOPICS[:3]]
    running.scheduler.submit(waiting)
    running.scheduler.leave(True)
    running.finish(waiting)
    for generation in waiting:
        [piece] = running.pieces[generation]
        assert isinstance(piece.error, Unavailable)
    assert all(running.finish(begun))
    assert all(running.pieces[generation][-1].finish for generation in begun)
    with pytest.raises(Unavailable):
        running.scheduler.submit([ask("Too late.")])
    assert running.idle()
    running.scheduler.leave(False)
    again = [ask("Back again.")]
    running.scheduler.submit(again)
    assert running.finish(again)
