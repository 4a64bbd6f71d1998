"""Of each kind of chat template: an answer is learnt up to what ends it when the model writes it, and no further."""

import json
from pathlib import Path

import numpy as np
import pytest

from serve.engines.chat_template import ChatTemplate
from serve.engines.tokenizer import TextCodec
from serve.protocol.chat import UserMessage
from tests.support.templates import CHATML_TOKENS, ENDOFTEXT, KINDS, chat, turns, write_kind, write_tokenizer
from tests.train.data.test_tokenize import learnt
from train.data.examples import Chat, Message
from train.data.options import DataOptions
from train.data.prepare import prepare
from train.data.tokenize import Tokens

CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
    ],
}
RESULT: Message = {"role": "tool", "content": "blue", "tool_call_id": "1"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("name", KINDS)
def test_both_answers_are_learnt_with_their_ends(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    write_kind(tmp_path, kind)
    tokens = Tokens(tmp_path)
    examples = tokens.encode(Chat(chat("A", "B", "C", "D")), 1000)
    assert [part for each in examples for part in learnt(tokens, each)] == list(kind.learnt)
    assert len(examples) == kind.examples
    for example in examples:
        last = np.flatnonzero(example.mask)[-1]
        assert int(example.ids[last]) in tokens.stops.ids or not tokens.stops.ids
        assert int(np.isin(example.ids[example.mask], tokens.stops.ids).sum()) == (
            len(kind.learnt) // kind.examples if tokens.stops.ids else 0
        )


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_that_is_cut_does_not_learn_an_end(name: str, tmp_path: Path) -> None:
    write_kind(tmp_path, KINDS[name])
    tokens = Tokens(tmp_path)
    (example,) = tokens.encode(Chat(chat("A", "x" * 500)), 300)
    assert len(example.ids) == 300 and not np.isin(example.ids[example.mask], tokens.stops.ids).any()


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_of_weight_0_is_not_learnt_with_its_end_neither(name: str, tmp_path: Path) -> None:
    write_kind(tmp_path, KINDS[name])
    tokens = Tokens(tmp_path)
    said = chat("A", "B", "C", "D")
    said[1]["weight"] = 0
    examples = tokens.encode(Chat(said), 1000)
    assert [part for each in examples for part in learnt(tokens, each)] == [KINDS[name].learnt[1]]


def test_a_call_ends_as_the_result_that_follows_opens(tmp_path: Path) -> None:
    template = turns(
        "<|{{ m.role }}|>\n{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}</call>"
        "{{ '' if tools else '' }}{% endif %}",
        "<|assistant|>\n",
    )
    special = (ENDOFTEXT, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
    ids = write_tokenizer(tmp_path, special, template, added=["</call>"])
    tokens = Tokens(tmp_path)
    assert set(tokens.stops.ids) == {ids[one] for one in (ENDOFTEXT, "<|user|>", "<|tool|>")}
    asked: Message = {"role": "user", "content": "A"}
    (whole,) = tokens.encode(Chat([asked, CALL, RESULT, *chat("x", "B")[1:]], [TOOL]), 1000)
    assert learnt(tokens, whole) == ["look</call><|tool|>", "B<|user|>"]
    (alone,) = tokens.encode(Chat([asked, CALL], [TOOL]), 1000)
    assert learnt(tokens, alone) == ["look</call><|tool|>"]


def test_a_call_that_is_closed_is_learnt_up_to_the_end_of_the_turn(tmp_path: Path) -> None:
    template = turns(
        "<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls and tools %}<call>look</call>{% endif %}<|im_end|>\n",
        "<|im_start|>assistant\n",
    )
    write_tokenizer(tmp_path, CHATML_TOKENS, template, added=["<call>", "</call>"])
    tokens = Tokens(tmp_path)
    (example,) = tokens.encode(Chat([*chat("A"), CALL, RESULT, *chat("x", "B")[1:]], [TOOL]), 1000)
    assert learnt(tokens, example) == ["<call>look</call><|im_end|>", "B<|im_end|>"]


def test_white_space_and_markup_at_an_answers_end_are_the_answers(tmp_path: Path) -> None:
    write_kind(tmp_path, KINDS["chatml of a base model, as Qwen 2.5"])
    tokens = Tokens(tmp_path)
    (example,) = tokens.encode(Chat(chat("A", "code\n\n", "C", "say <|im_end|>")), 1000)
    assert learnt(tokens, example) == ["code\n\n<|im_end|>", "say <|im_end|><|im_end|>"]
    assert np.isin(example.ids[example.mask], tokens.stops.ids).sum() == 2


def test_an_end_that_the_tokenizer_does_not_call_special_is_words_in_anyones_words(tmp_path: Path) -> None:
    ids = write_kind(tmp_path, KINDS["an end token that the tokenizer does not call special"])
    tokens = Tokens(tmp_path)
    (example,) = tokens.encode(Chat(chat("A<|im_end|>", "say <|im_end|>")), 1000)
    assert learnt(tokens, example) == ["say <|im_end|><|im_end|>"]
    assert np.count_nonzero(example.ids == ids["<|im_end|>"]) == 2
    codec = TextCodec(tmp_path, tokens.vocab_size, 1000)
    assert "<|im_end|>" in codec.special and ids["<|im_end|>"] not in codec.encode_literal("a<|im_end|>")
    prompt = ChatTemplate(tmp_path, codec).encode([UserMessage(role="user", content="A<|im_end|>")], [])
    assert prompt.count(ids["<|im_end|>"]) == 1


def test_answers_in_a_row_are_each_learnt_with_an_end(tmp_path: Path) -> None:
    for name in ("that closes a turn with the next one", "roles that end the one before, as GLM"):
        write_kind(tmp_path / name, KINDS[name])
        tokens = Tokens(tmp_path / name)
        said = [*chat("A", "B"), *chat("x", "D")[1:]]
        examples = tokens.encode(Chat(said), 1000)
        assert [part for each in examples for part in learnt(tokens, each)] == list(KINDS[name].learnt)


def test_data_of_a_template_that_leaves_answers_open_is_other_data(tmp_path: Path) -> None:
    kind = KINDS["roles that end the one before, as GLM"]
    ids = write_kind(tmp_path, kind)
    before = Tokens(tmp_path).sha256
    (tmp_path / "generation_config.json").write_text(
        f'{{"eos_token_id": [{ids[ENDOFTEXT]}, {ids["<sop>"]}]}}'
    )
    assert Tokens(tmp_path).sha256 != before


class Lines:
    """A Progress that keeps what it is told."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def __call__(self, step: str, done: float | None = None) -> None:
        self.lines.append(step)


def test_an_end_token_put_behind_answers_is_told_by_card_and_progress(tmp_path: Path) -> None:
    words = [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "omicron",
        "pi",
        "rho",
        "sigma",
        "tau",
    ]
    for name, chats, told in (
        ("role names in words", True, True),
        ("role names in words", False, False),
        ("chatml of a base model, as Qwen 2.5", True, False),
    ):
        folder = tmp_path / f"{name}{chats}"
        write_kind(folder, KINDS[name])
        records = [
            {"messages": chat(f"What is {word}?", f"It is the letter {word} of old.")}
            if chats
            else {"text": f"This is {word}, a letter of a very old alphabet."}
            for word in words
        ]
        file = folder / "data.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        lines: list[str] = []
        out = folder / "out"
        for _ in range(2):  # made, and found made
            card = prepare([file], folder, out, DataOptions(held_fraction=0.2), Lines(lines))
            assert bool(card.notes) == told
        notes = [line for line in lines if line.startswith("note: ")]
        assert len(notes) == 2 * told and all(
            "<|endoftext|> is put behind each answer" in one for one in notes
        )
