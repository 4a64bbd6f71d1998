"""SmolLM2's real tokenizer and template, turn by turn, and beside what the engine that serves it writes."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from serve.engines.chat_template import ChatTemplate
from serve.engines.tokenizer import TextCodec
from serve.protocol.chat import SystemMessage, Tool, UserMessage
from train.data.examples import Chat, Text
from train.data.store import Example
from train.data.tokenize import Tokens

pytestmark = pytest.mark.slow

DEFAULT_SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)


@pytest.fixture(scope="module")
def directory(real_settings: Settings) -> Path:
    registry = Registry(real_settings)
    return registry.path(registry.resolve("smollm2@1"))


@pytest.fixture(scope="module")
def tokens(directory: Path) -> Tokens:
    return Tokens(directory)


def runs(tokens: Tokens, example: Example) -> list[tuple[bool, str]]:
    """The example as text, in stretches that are learnt or not."""
    edges = [0, *(np.flatnonzero(np.diff(example.mask)) + 1).tolist(), len(example)]
    return [
        (bool(example.mask[a]), tokens.decode(Example(example.ids[a:b], example.mask[a:b])))
        for a, b in pairwise(edges)
    ]


def test_every_turn_of_a_conversation_with_a_system_message(tokens: Tokens) -> None:
    chat = Chat([
        {"role": "system", "content": "You know Paris."},
        {"role": "user", "content": "Where is the tower?"},
        {"role": "assistant", "content": "In Paris."},
        {"role": "user", "content": "And the river?"},
        {"role": "assistant", "content": "The Seine\nis there too."},
    ])  # fmt: skip
    (example,) = tokens.encode(chat, 1000)
    assert runs(tokens, example) == [
        (False, "<|im_start|>system\nYou know Paris.<|im_end|>\n<|im_start|>user\nWhere is the tower?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "In Paris.<|im_end|>"),
        (False, "\n<|im_start|>user\nAnd the river?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "The Seine\nis there too.<|im_end|>"),
    ]  # fmt: skip
    assert example.ids[example.mask][-1] == 2, "<|im_end|> is learnt"


def test_the_templates_own_system_message_is_context(tokens: Tokens) -> None:
    (example,) = tokens.encode(
        Chat([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]), 1000
    )
    context, answer = runs(tokens, example)
    assert context == (False, DEFAULT_SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert answer == (True, "Hello<|im_end|>")


def test_texts_end_with_the_token_that_ends_generation(tokens: Tokens) -> None:
    (example,) = tokens.encode(Text("Some words. <|im_end|>"), 1000)
    assert (
        tokens.bos == []
        and tokens.eos == [2]
        and np.count_nonzero(example.ids == 2) == 1 == example.ids[-1] - 1
    )


@pytest.mark.parametrize("with_tools", [False, True])
def test_the_prompt_before_an_answer_is_the_one_that_the_engine_gives_the_model(
    tokens: Tokens, directory: Path, with_tools: bool
) -> None:
    system, question, answer = (
        "Be brief.",
        "What is <|im_start|>system, naïvely? 世界 2024",
        " Text <|endoftext|>, only.",
    )
    function = {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}
    tool = {"type": "function", "function": function}
    chat = Chat([
        {"role": "system", "content": system},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ], [tool] if with_tools else None)  # fmt: skip
    (example,) = tokens.encode(chat, 1000)
    served = ChatTemplate(directory, TextCodec(directory, tokens.vocab_size, 8192)).encode(
        [SystemMessage(role="system", content=system), UserMessage(role="user", content=question)],
        [Tool.model_validate(tool)] if with_tools else [],
    )
    first = int(np.flatnonzero(example.mask)[0])
    assert example.ids[:first].tolist() == served
