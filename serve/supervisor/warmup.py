"""The requests before any client's: a version that does not answer sensibly never serves."""

import json
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

from everlearn.registry.registry import Version

PROMPTS = ("The capital of France is", "Once upon a time there was", "Here is a short list of colours:")
"""Tried in turn until one is answered sensibly: a sound model may end one answer at once, hardly all three."""

ANSWER_TOKENS = 16
LOOP_TOKENS = 8
"""This many equal tokens are a loop, which a sound model does not sample."""

SENTENCES = ("The river runs through the old town.", "Interest rates rose again in March.")

IMAGES = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mM4oaEBAALUARk7rVwIAAAAAElFTkSuQmCC",
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mPQCDgBAAHkAUEmfyMLAAAAAElFTkSuQmCC",
)
"""A red pixel and a blue one."""

EMBEDDED: Mapping[str, tuple[str | dict[str, str], ...]] = {
    "embed": SENTENCES,
    "image_text": ("a dog", *({"image": f"data:image/png;base64,{one}"} for one in IMAGES)),
}
"""What a version that embeds is asked for, by its task; each is unlike the one before it. Captions may be short."""

PREDICTIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "classify": ("/classify", {"input": list(SENTENCES)}),
    "score": ("/score", {"text_1": SENTENCES[0], "text_2": list(SENTENCES)}),
    "token_classify": ("/pooling", {"input": list(SENTENCES)}),
    "question_answer": ("/models", {"inputs": {"question": "What rose?", "context": " ".join(SENTENCES)}}),
}
"""What a version with a head is asked, by its task."""


class Unfit(Exception):
    """Why a version must not serve, in words that follow its name."""


async def warm_up(session: aiohttp.ClientSession, version: Version, bundle: Path) -> None:
    """Send the engine at `session` such requests as clients will. Raises Unfit, and ClientError if it is gone."""
    if version.task in EMBEDDED:
        asked = EMBEDDED[version.task]
        body = {"model": version.model, "input": list(asked)}
        fault = _fault_of_embeddings(await _ask(session, "/v1/embeddings", body), len(asked))
    elif version.task in PREDICTIONS:
        path, body = PREDICTIONS[version.task]
        fault = _fault_of_predictions(await _ask(session, path, {"model": version.model, **body}))
    else:
        fault = await _fault_of_text(session, version.model, chat=has_chat_template(bundle))
    if fault:
        raise Unfit(f"answered its warm-up with {fault}")


def has_chat_template(bundle: Path) -> bool:
    """Whether the version was made for chat, or only continues text."""
    if (bundle / "chat_template.jinja").exists():
        return True
    config = bundle / "tokenizer_config.json"
    return config.exists() and "chat_template" in json.loads(config.read_text())


async def _fault_of_text(session: aiohttp.ClientSession, model: str, chat: bool) -> str | None:
    """The last prompt's fault, if no prompt was answered sensibly.

    Sampled at temperature 1, since a small model that is sound may well repeat itself when decoded greedily.
    """
    fault = None
    for seed, prompt in enumerate(PROMPTS):
        body = {"model": model, "max_tokens": ANSWER_TOKENS, "temperature": 1.0, "top_p": 1.0, "seed": seed}
        if chat:
            body |= {"messages": [{"role": "user", "content": prompt}], "logprobs": True}
            answer = await _ask(session, "/v1/chat/completions", body)
        else:
            answer = await _ask(session, "/v1/completions", body | {"prompt": prompt, "logprobs": 1})
        fault = _fault_of_choice(answer)
        if fault is None:
            return None
    return fault


async def _ask(session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with session.post(path, json=body, timeout=aiohttp.ClientTimeout(total=None)) as response:
        text = await response.text(errors="replace")
        if response.status != 200:
            raise Unfit(f"refused its warm-up request with status {response.status}: {text[:300]}")
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Unfit(f"answered its warm-up request with what is no JSON object: {text[:100]!r}")
    return answer


def _fault_of_choice(answer: dict[str, Any]) -> str | None:
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        tokens, logprobs = _sampled(choice.get("logprobs"))
    except (KeyError, IndexError, TypeError):
        return f"what is no completion: {json.dumps(answer)[:200]}"
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in logprobs):
        return "probabilities that are no finite numbers"
    if not text:
        return "an empty text"
    tokens = tokens or text.split()
    if len(tokens) >= LOOP_TOKENS and len(set(tokens)) == 1:
        return f"one token over and over: {text[:60]!r}"
    return None


def _sampled(logprobs: dict[str, Any] | None) -> tuple[list[str], list[Any]]:
    """The tokens of an answer and their log probabilities, in chat's form or in that of completions."""
    if logprobs is None:
        return [], []
    if "content" in logprobs:
        entries = logprobs["content"] or []
        return [one["token"] for one in entries], [one["logprob"] for one in entries]
    return logprobs["tokens"], logprobs["token_logprobs"]


def _fault_of_embeddings(answer: dict[str, Any], asked: int) -> str | None:
    try:
        vectors = [one["embedding"] for one in answer["data"]]
        finite = all(math.isfinite(value) for vector in vectors for value in vector)
    except (KeyError, TypeError):
        return f"what are no embeddings: {json.dumps(answer)[:200]}"
    if len(vectors) != asked or not all(vectors):
        return f"{len(vectors)} embeddings for {asked} inputs, or with empty ones"
    if not finite or not all(any(vector) for vector in vectors):
        return "embeddings that are not finite, or all zero"
    same = any(one == other for one, other in pairwise(vectors))
    return "the same embedding for unlike inputs" if same else None


def _fault_of_predictions(answer: Any) -> str | None:
    """Of any task: its scores and probabilities are finite, and there are some."""
    numbers = list(_floats(answer))
    if not numbers:
        return f"what are no predictions: {json.dumps(answer)[:200]}"
    return None if all(map(math.isfinite, numbers)) else "predictions that are not finite"


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float) or value is None:  # JSON has no other word for what is no number
        yield math.nan if value is None else value
    elif isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _floats(one)
