"""More training texts from few: each in other words, or there and back through another language, by a served model.

Whether a paraphrase still means the same, nobody checks: what can be told without reading is left out. Texts and answers
are in memory.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from everlearn.bundles.durable import write_file
from everlearn.errors import Conflict, InvalidInput
from everlearn.progress import Progress, silent
from train.data.augmenting.answers import Asking, answer_prompts
from train.data.cleaning.clean import with_texts
from train.data.examples import Chat, RawExample
from train.data.reading.read import Kind, Limits, read_examples

IN_OTHER_WORDS = (
    "Write this text in other words. Keep its meaning, names and numbers. Answer with the new text alone."
)
INTO = "Translate this text into {language}. Answer with the translation alone."
REFUSED: dict[str, str] = {
    "chat": "a conversation goes on from each of its messages",
    "token-classification": "its labels stand at places in the text",
    "question-answering": "its answers stand at places in the text",
    "contrastive": "its pictures lie beside the file",
}
"""Kinds that are not paraphrased, and why."""
MOST_TIMES = 3.0
"""A paraphrase is at most so many times as long as the text, or as short."""
SHORT_CHARS = 20
"""Below it, any length goes."""
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass
class Made:
    """``kept`` examples were written; of the others, ``left_out`` says how many, by the reason."""

    read: int = 0
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter[str])

    def told(self) -> str:
        """A line for people."""
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(self.left_out.items()))
        return f"{self.kept} paraphrases of {self.read} examples" + (f"; left out: {why}" if why else "")


def paraphrase(
    source: Path,
    out: Path,
    asking: Asking,
    *,
    kind: Kind = "auto",
    through: str | None = None,
    language: str = "English",
    progress: Progress = silent,
) -> Made:
    """Writes ``asking.samples`` paraphrases of each of ``source``'s examples to ``out`` (JSON lines), without the originals.

    ``kind``: of the examples, as under a recipe's ``data``. ``through``: a language to translate into, and back into
    ``language``. What the server answered lies beside ``out`` until all is there, so that the same call goes on. Raises
    InvalidInput for the kinds of :data:`REFUSED`, Conflict where ``out`` exists, and as ``answer_prompts``.
    """
    if why := REFUSED.get(kind):
        raise InvalidInput(f"{kind} is not paraphrased: {why}", param="kind")
    if kind == "seq2seq" and through:
        raise InvalidInput("the texts of seq2seq may be in two languages: leave out through", param="through")
    if out.exists():
        raise Conflict(f"{out} exists: remove it, or choose another", param="out")
    examples = list(_read(source, kind))
    texts = list(dict.fromkeys(text for example in examples for text in _texts(example)))
    way = [asking.model, asking.samples, asking.temperature, asking.max_tokens, through, language]
    work = out.with_name(f".{out.name}.{hashlib.sha256(json.dumps(way).encode()).hexdigest()[:12]}")
    work.mkdir(exist_ok=True)
    if through is None:
        said = _answers(IN_OTHER_WORDS, texts, asking, work / "words.jsonl", progress)
    else:
        there = _answers(INTO.format(language=through), texts, asking, work / "there.jsonl", progress)
        between = dict.fromkeys(text for some in there.values() for text in some)
        once = replace(asking, samples=1)
        back = _answers(INTO.format(language=language), between, once, work / "back.jsonl", progress)
        said = {text: [one for each in some for one in back.get(each, [])] for text, some in there.items()}
    made = Made(len(examples))
    lines = [line for example in examples for line in _copies(example, asking.samples, said, made)]
    write_file(out, "".join(lines).encode())
    shutil.rmtree(work)
    return made


def _answers(
    ask: str, texts: Iterable[str], asking: Asking, kept: Path, progress: Progress
) -> dict[str, list[str]]:
    """Of each text, the answers that ended; ``kept`` has them."""
    asked = {f"{ask}\n\n{text}": text for text in texts}
    prompts = kept.with_name(f"{kept.stem}-prompts.jsonl")
    write_file(prompts, "".join(json.dumps({"prompt": one}) + "\n" for one in asked).encode())
    answer_prompts(prompts, kept, asking, progress)
    found: dict[str, list[str]] = defaultdict(list)
    with kept.open("rb") as lines:
        for line in lines:
            *_, question, answer = json.loads(line)["messages"]
            found[asked[question["content"]]].append(answer["content"])
    return found


def _read(source: Path, kind: Kind) -> Iterator[RawExample]:
    for example in read_examples(source, kind=kind, limits=Limits(min_examples=1)):
        if isinstance(example, Chat):
            raise InvalidInput(
                f"{example.source}: is a conversation, and {REFUSED['chat']}: only texts and labelled examples are "
                "paraphrased",
                param="source",
            )
        yield example


def _texts(example: RawExample) -> list[str]:
    found: list[str] = []
    with_texts(example, lambda text: found.append(text) or text)
    return found


def _copies(example: RawExample, copies: int, said: dict[str, list[str]], made: Made) -> Iterator[str]:
    """Lines of those that are worth learning from."""
    texts = _texts(example)
    seen = {_plain(texts)}
    for copy in range(copies):
        new = {text: said[text][copy].strip() for text in texts if copy < len(said.get(text, []))}
        if reason := next(filter(None, (_why_left_out(text, new.get(text)) for text in texts)), None):
            made.left_out[reason] += 1
        elif (plain := _plain(list(new.values()))) in seen:
            made.left_out["as it was, or as another copy"] += 1
        else:
            seen.add(plain)
            made.kept += 1
            yield json.dumps(with_texts(example, new.__getitem__).record, ensure_ascii=False) + "\n"


def _why_left_out(text: str, answer: str | None) -> str | None:
    if answer is None:
        return "no answer that ended"
    long, short = max(len(text), len(answer)), min(len(text), len(answer))
    if long > SHORT_CHARS and long > MOST_TIMES * short:
        return "far longer or shorter"
    if Counter(NUMBER.findall(text)) != Counter(NUMBER.findall(answer)):
        return "other numbers"
    return None


def _plain(texts: list[str]) -> str:
    return " ".join(re.findall(r"\w+", " ".join(texts).casefold()))
