"""More training texts from few: each in other words, or there and back through another language, by a served model.

Whether a paraphrase still means the same, nobody checks: what can be told without reading is left out. Texts and answers
are in memory.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from everlearn.bundles.durable import write_file
from everlearn.errors import Conflict, InvalidInput, NotFound
from everlearn.progress import Progress, silent
from train.data.augmenting.answers import MAX_LINE_BYTES, Asking, answer_prompts, refuse_same_samples
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
LABELS = ("label", "labels", "tags", "score", "answers", "target")
"""Keys that a text read as nothing but text would lose."""
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
    if out.suffix != ".jsonl":
        raise InvalidInput(f"{out.name} is going to hold JSON lines: name it so (.jsonl)", param="out")
    if not out.absolute().parent.is_dir():
        raise NotFound(f"{out.absolute().parent} is no folder", param="out")
    if out.exists():
        raise Conflict(f"{out} exists: remove it, or choose another", param="out")
    refuse_same_samples(asking)
    examples = list(_read(source, kind))
    texts = dict.fromkeys(text for example in examples for text in _texts(example) if text.strip())
    way = [asking.model, asking.samples, asking.temperature, asking.max_tokens, through, language]
    work = out.with_name(f".{out.name}.{hashlib.sha256(json.dumps(way).encode()).hexdigest()[:12]}")
    work.mkdir(exist_ok=True)
    refused: list[str] = []
    if through is None:
        said = _answers(IN_OTHER_WORDS, texts, asking, work / "words.jsonl", refused, progress)
    else:
        there = _answers(
            INTO.format(language=through), texts, asking, work / "there.jsonl", refused, progress
        )
        between = dict.fromkeys(text for some in there.values() for text in some)
        once = replace(asking, samples=1)
        back = _answers(INTO.format(language=language), between, once, work / "back.jsonl", refused, progress)
        said = {text: [one for each in some for one in back.get(each, [])] for text, some in there.items()}
        said = {text: some for text, some in said.items() if some}
    if texts and not said:
        raise InvalidInput(
            f"no text got an answer that ended. {asking.url} said: {refused[0]}"
            if refused
            else f"no text got an answer that ended: --max-tokens ({asking.max_tokens}) may be too few",
            param="model",
        )
    made = Made(len(examples))
    lines = [line for example in examples for line in _copies(example, asking.samples, said, made)]
    write_file(out, "".join(lines).encode())
    shutil.rmtree(work)
    return made


def _answers(
    ask: str, texts: Iterable[str], asking: Asking, kept: Path, refused: list[str], progress: Progress
) -> dict[str, list[str]]:
    """Of each text, the answers that ended; ``kept`` has them, also those of texts that FILE has no more. What a server
    refuses is added to ``refused``, a text that is too long for a line of prompts is not asked for."""
    asked = {f"{ask}\n\n{text}": text for text in texts}
    lines = [json.dumps({"prompt": one}, ensure_ascii=False).encode() + b"\n" for one in asked]
    prompts = kept.with_name(f"{kept.stem}-prompts.jsonl")
    write_file(prompts, b"".join(line for line in lines if len(line) <= MAX_LINE_BYTES))
    if why := answer_prompts(prompts, kept, asking, progress).why_refused:
        refused.append(why)
    found: dict[str, list[str]] = defaultdict(list)
    with kept.open("rb") as answers:
        for line in answers:
            *_, question, answer = json.loads(line)["messages"]
            if (text := asked.get(question["content"])) is not None:
                found[text].append(answer["content"])
    return dict(found)


def _read(source: Path, kind: Kind) -> Iterator[RawExample]:
    for example in read_examples(source, kind=kind, limits=Limits(min_examples=1)):
        if isinstance(example, Chat):
            raise InvalidInput(
                f"{example.source}: is a conversation, and {REFUSED['chat']}: only texts and labelled examples are "
                "paraphrased",
                param="source",
            )
        if lost := [key for key in example.ignored if key in LABELS]:
            raise InvalidInput(
                f'{example.source}: its "{lost[0]}" would be lost: say what the examples are, as in kind classification',
                param="kind",
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
        new |= {text: text for text in texts if not text.strip()}
        if reason := next(filter(None, (_why_left_out(text, new.get(text)) for text in texts)), None):
            made.left_out[reason] += 1
        elif (plain := _plain([new[text] for text in texts])) in seen:
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
    """Without case and punctuation."""
    said = " ".join(texts).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LMNS" else " " for c in said).split())
