"""A served model's answers as text to learn: distillation of sequences (arXiv 1606.07947) from any OpenAI server.

Nothing but text passes between the two, so teacher and student may differ in everything, their tokenizers too. Each
answer is a line of OUT, a conversation as ``everlearn train`` takes it; killed and started again, only what is missing
is asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
from filelock import FileLock, Timeout

from everlearn.errors import AuthError, Conflict, EverlearnError, InvalidInput, NotFound, Unavailable
from everlearn.progress import Progress, silent
from train.data.examples import Message, parse_record

TRIES = 8
"""Of one request, where the server is away, busy or broken: about two minutes."""
LONGEST_WAIT_S = 30.0
TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504}
OF_THIS_PROMPT = {400, 413, 422}
"""The server takes others: this one is too long, or it does not like it."""
MAX_LINE_BYTES = 2**20
MAX_ANSWER_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Asking:
    """Which server and model to ask, and how. ``url`` as OpenAI's clients take it, so with ``/v1``; ``key`` is sent, never shown."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    samples: int = 1
    temperature: float = 0.0
    max_tokens: int = 1024
    at_once: int = 8
    timeout_s: float = 600.0


@dataclass
class Answered:
    """``answers`` are in OUT now, ``asked`` of them in this run. Left out: ``cut`` at max_tokens, ``empty``, ``refused``."""

    answers: int = 0
    asked: int = 0
    cut: int = 0
    empty: int = 0
    refused: int = 0
    why_refused: str | None = None


def answer_prompts(prompts: Path, out: Path, asking: Asking, progress: Progress = silent) -> Answered:
    """Asks for what OUT lacks of ``samples`` answers to each prompt, and adds each as it comes.

    Raises NotFound, InvalidInput with the line, AuthError, Conflict where another run writes OUT, Unavailable where the
    server stays away; what came is kept.
    """
    refuse_same_samples(asking)
    wanted = list(prompts_in(prompts))
    if not out.absolute().parent.is_dir():
        raise NotFound(f"{out.absolute().parent} is no folder", param="out")
    lock = FileLock(f"{out}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Conflict(f"another run is writing {out}") from None
    try:
        known = answered_in(out)
        found = Answered(answers=known.total())
        missing: list[tuple[list[Message], int]] = []
        for asked in wanted:
            for sample in range(asking.samples):
                if known[name := name_of(asked)]:
                    known[name] -= 1
                else:
                    missing.append((asked, sample))
        with out.open("a", encoding="utf-8") as file:
            asyncio.run(ask_all(missing, file, asking, found, progress))
        return found
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: later it may be another run's
        lock.release()


def refuse_same_samples(asking: Asking) -> None:
    """Raises InvalidInput."""
    if asking.samples > 1 and asking.temperature == 0:
        raise InvalidInput(
            "at temperature 0 all samples of a prompt are one: give a temperature", param="samples"
        )


def prompts_in(file: Path) -> Iterator[list[Message]]:
    """The messages to answer, a line each: ``{"prompt": …}`` or ``{"messages": […]}``, whose last answers are left out.

    Raises NotFound, and InvalidInput that begins with the file and the line.
    """
    if not file.is_file():
        raise NotFound(f"{file}: no such file", param="prompts")
    with file.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE_BYTES + 1), b""), start=1):
            source = f"{file.name}:{number}"
            if len(line) > MAX_LINE_BYTES:
                raise InvalidInput(f"{source}: is longer than {MAX_LINE_BYTES} bytes", param="prompts")
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InvalidInput(f"{source}: is no JSON: {error}", param="prompts") from None
            yield question(record, source)


def question(record: Any, source: str) -> list[Message]:
    """The messages of a record up to its last question. Raises InvalidInput that begins with ``source``."""
    if not isinstance(record, dict) or record.keys().isdisjoint(("prompt", "messages")):
        raise InvalidInput(
            f'{source}: right would be {{"prompt": …}} or {{"messages": […]}}', param="prompts"
        )
    asked = record.get("messages") or record.get("prompt")
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    while (
        isinstance(asked, list)
        and asked
        and isinstance(asked[-1], dict)
        and asked[-1].get("role") == "assistant"
    ):
        asked = asked[:-1]
    if not isinstance(asked, list) or not asked:
        raise InvalidInput(f"{source}: asks nothing", param="prompts")
    if record.get("tools"):
        raise InvalidInput(f"{source}: tools are not asked with: leave them out", param="prompts")
    parse_record({"messages": [*asked, {"role": "assistant", "content": "?"}]}, source)
    return asked


def answered_in(out: Path) -> Counter[str]:
    """How many answers each question has in OUT. Half a line, where a run was killed, is taken out.

    Raises InvalidInput where OUT is something else.
    """
    known: Counter[str] = Counter()
    if not out.exists():
        return known
    with out.open("rb+") as file:
        whole = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                *asked, _answer = json.loads(line)["messages"]
            except (ValueError, KeyError, TypeError):
                raise InvalidInput(
                    f"{out.name}:{number}: is no answer of an earlier run; name a file of its own",
                    param="out",
                ) from None
            known[name_of(asked)] += 1
            whole += len(line)
        file.truncate(whole)
    return known


def name_of(asked: list[Message]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


async def ask_all(
    missing: list[tuple[list[Message], int]],
    file: IO[str],
    asking: Asking,
    found: Answered,
    progress: Progress,
) -> None:
    """``at_once`` requests at a time; a line for each answer as it comes."""
    waiting, done = iter(missing), 0
    progress("asking", 0.0)

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal done
        for asked, sample in waiting:
            answer = await ask(client, asked, sample, asking, found)
            if answer is not None:
                line = {"messages": [*asked, {"role": "assistant", "content": answer}]}
                try:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    file.flush()
                except OSError as error:
                    raise Unavailable(f"{file.name}: {error.strerror}. The same command goes on") from None
                found.answers += 1
            found.asked += 1
            done += 1
            progress("asking", done / len(missing))

    headers = {"Authorization": f"Bearer {asking.key}"} if asking.key else {}
    try:
        async with (
            httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(asking.timeout_s, connect=10)) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(min(asking.at_once, len(missing))):
                group.create_task(work(client))
    except BaseExceptionGroup as group:
        ours = [one for one in group.exceptions if isinstance(one, EverlearnError)]
        raise (ours or group.exceptions)[0] from None
    finally:
        file.flush()
        os.fsync(file.fileno())


async def ask(
    client: httpx.AsyncClient, asked: list[Message], sample: int, asking: Asking, found: Answered
) -> str | None:
    """The answer; None, and counted, where there is none to learn from."""
    body = {
        "model": asking.model,
        "messages": asked,
        "temperature": asking.temperature,
        "max_tokens": asking.max_tokens,
        "seed": sample,
    }
    said = await post(client, f"{asking.url.rstrip('/')}/chat/completions", body)
    if isinstance(said, str):
        found.refused += 1
        found.why_refused = found.why_refused or said
        return None
    try:
        choice = said["choices"][0]
        content, reason = choice["message"].get("content"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Unavailable(f"{asking.url} does not answer as an OpenAI server does") from None
    if reason == "length":
        found.cut += 1
        return None
    if not isinstance(content, str) or not content.strip() or not is_unicode(content):
        found.empty += 1
        return None
    return content


def is_unicode(text: str) -> bool:
    """Not of half a surrogate, which no file holds."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


async def post(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Any:
    """What the server answers; its words where it refuses this body and would take another.

    Raises AuthError, NotFound, and Unavailable after :data:`TRIES`.
    """
    fault = ""
    for attempt in range(TRIES):
        wait = min(LONGEST_WAIT_S, 0.5 * 2**attempt) * random.uniform(0.75, 1.25)
        try:
            async with client.stream("POST", url, json=body) as response:
                text = await limited(response)
        except httpx.UnsupportedProtocol:
            raise InvalidInput(
                f"{url} is no address of a server: it begins with http://", param="url"
            ) from None
        except httpx.TransportError as error:
            fault = str(error) or type(error).__name__
        else:
            if response.status_code == 200:
                return as_json(text)
            fault = f"{response.status_code}, {message_of(text)}"
            if response.status_code in (401, 403):
                raise AuthError(f"{url} does not take the key: {fault}")
            if response.status_code in OF_THIS_PROMPT:
                return fault
            if response.status_code not in TRANSIENT:
                hint = "" if "/v1/" in url else " (the url of an OpenAI server mostly ends in /v1)"
                raise NotFound(f"{url} answers {fault}{hint}", param="url")
            wait = asked_wait(response) or wait
        if attempt < TRIES - 1:
            await asyncio.sleep(wait)
    raise Unavailable(
        f"{url} did not answer in {TRIES} tries: {fault}. What came is kept: the same command goes on"
    )


async def limited(response: httpx.Response) -> bytes:
    """The body. Raises Unavailable for one larger than any answer."""
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise Unavailable(f"{response.url} answered more than {MAX_ANSWER_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def as_json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def message_of(text: bytes) -> str:
    """What an OpenAI error says, or the beginning of another."""
    error = as_json(text)
    if isinstance(error, dict) and isinstance(error.get("error"), dict):
        return str(error["error"].get("message"))[:500]
    return text[:200].decode("utf-8", "replace").strip()


def asked_wait(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, as far as that is bearable."""
    try:
        return min(LONGEST_WAIT_S, max(0.0, float(response.headers["retry-after"])))
    except (KeyError, ValueError):
        return None
