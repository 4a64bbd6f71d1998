"""The records of labelled data, in the names that Hugging Face's data sets have them; each kind as one form of its own.

A record with other keys, a label that is none, or an answer that is not in its context is refused by file and line.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from train.data.examples import checked_text, kind_of
from train.data.labelled.example import Labelled, LabelledKind
from train.data.labelled.images import image_bytes
from train.data.reading.forms import Record, UnknownForm, fault, unpacked_json
from train.data.reading.schema import Schema

TEXT_PAIRS = (("text", "text_pair"), ("sentence", ""), ("sentence1", "sentence2"), ("premise", "hypothesis"))
TAGS = ("tags", "ner_tags", "pos_tags")
SCORED = (("query", "document"), ("sentence1", "sentence2"))
SCORES = ("label", "score")
ANCHORS = ("anchor", "query")
IMAGES, CAPTIONS = ("image", "file_name"), ("text", "caption")
MAX_LABEL_CHARS = 200
MAX_WORDS = 100_000
MAX_ANSWERS = 15
"""So many answers to one question are marked in 30 bits of a column."""

RIGHT: dict[LabelledKind, str] = {
    "classification": '"text" and "label", and "text_pair" where there are two texts',
    "token-classification": '"tokens" and "tags" (or "ner_tags"), a list each, one tag for each word',
    "question-answering": '"context", "question" and "answers": {"text": […], "answer_start": […]}',
    "pair-scoring": '"query", "document" and "label", or "sentence1", "sentence2" and "score"',
    "embedding": '"anchor" and "positive", and "negative" where there is one',
    "seq2seq": '"source" and "target", or "translation" with data.translation, such as en-es',
    "contrastive": '"image" (or "file_name") and "text" (or "caption")',
}
NEEDED: dict[LabelledKind, tuple[tuple[str, ...], ...]] = {
    "classification": tuple((first, "label") for first, _ in TEXT_PAIRS),
    "token-classification": tuple(("tokens", tags) for tags in TAGS),
    "question-answering": (("context", "question", "answers"),),
    "pair-scoring": tuple((*pair, score) for pair in SCORED for score in SCORES),
    "embedding": tuple((anchor, "positive") for anchor in ANCHORS),
    "seq2seq": (("source", "target"), ("translation",)),
    "contrastive": tuple((image, caption) for image in IMAGES for caption in CAPTIONS),
}
"""Of each kind, the keys that one of its forms cannot do without."""
LISTS = frozenset({"tokens", *TAGS, "answers", "translation"})


def schema_of(kind: LabelledKind, translation: str | None = None, folder: Path = Path()) -> Schema:
    """How records of ``kind`` are read. ``translation``: from which language to which, where records hold several.
    ``folder``: where the pictures lie that records name."""
    makers: dict[LabelledKind, Callable[[_Said], Record]] = {
        "classification": _classified,
        "token-classification": _tagged,
        "question-answering": _answered,
        "pair-scoring": _scored,
        "embedding": _paired,
        "seq2seq": partial(_translated, translation=translation),
        "contrastive": partial(_pictured, folder=folder),
    }
    needed = NEEDED[kind]
    known = {key for keys in needed for key in keys} | {"negative", "text_pair", "hypothesis", "sentence2"}

    def is_enough(found: Collection[str]) -> bool:
        return any(set(keys) <= set(found) for keys in needed)

    def parse(record: Any, source: str, ignored: tuple[str, ...] = ()) -> Labelled:
        said = _Said(record, source, kind, is_enough)
        made = makers[kind](said)
        image = made.get("image")
        if image is not None:
            made["image"] = hashlib.sha256(image).hexdigest()
        return Labelled(kind, made, source, kind, (*ignored, *said.left()), image)

    starts = tuple(sorted({key for keys in needed for key in keys}))
    return Schema(parse, frozenset(known), LISTS, LISTS, starts, is_enough, f"Right would be {RIGHT[kind]}")


class _Said:
    """A record, with what was used of it. Raises InvalidInput that begins with its source."""

    def __init__(
        self, record: Any, source: str, kind: LabelledKind, is_enough: Callable[[Collection[str]], bool]
    ) -> None:
        self.source, self.kind, self._used = source, kind, set[str]()
        if not isinstance(record, dict):
            what = f"{source}: is {kind_of(record)}, not an object. Right would be {RIGHT[kind]}"
            raise UnknownForm(what, param="training_file")
        self.record: Record = record
        if not is_enough(record):
            found = ", ".join(f'"{key}"' for key in list(record)[:8]) or "no keys"
            raise UnknownForm(f"{source}: has {found}. Right would be {RIGHT[kind]}", param="training_file")

    def refuse(self, wrong: str, right: str) -> NoReturn:
        raise fault(self.source, wrong, right)

    def has(self, *keys: str) -> str:
        """The first of ``keys`` that the record has with a value; nothing where it has none."""
        return next((key for key in keys if self.record.get(key) not in (None, "")), "")

    def one_of(self, *keys: str) -> str:
        """As :meth:`has`, of which there must be one and only one."""
        there = [key for key in keys if self.record.get(key) is not None]
        if not there:
            missing = next((key for key in keys if key in self.record), keys[0])
            self.refuse(f'"{missing}" is null', f"Right would be {RIGHT[self.kind]}")
        if len(there) > 1:
            self.refuse(f'has both "{there[0]}" and "{there[1]}"', "Keep one of them")
        return there[0]

    def value(self, key: str) -> Any:
        self._used.add(key)
        return self.record.get(key)

    def text(self, key: str) -> str:
        """Raises InvalidInput where it is no text, or has nothing but spaces."""
        said = checked_text(self.value(key), self.source, f'"{key}"')
        if not said.strip():
            self.refuse(f'"{key}" is empty', "Write it, or leave the example out")
        return said

    def list_of_texts(self, key: str) -> list[str]:
        said = unpacked_json(self.value(key), f'{self.source}: "{key}"')
        if not isinstance(said, list) or not said:
            self.refuse(f'"{key}" is {kind_of(said)}, not a list of words', 'Right would be ["One", "word"]')
        if len(said) > MAX_WORDS:
            self.refuse(f'"{key}" has {len(said)} words', f"An example has at most {MAX_WORDS}")
        return [checked_text(each, self.source, f'"{key}"[{n}]') for n, each in enumerate(said)]

    def left(self) -> list[str]:
        return [
            key
            for key, value in self.record.items()
            if key not in self._used and value not in (None, "", [], {})
        ]


def _classified(said: _Said) -> Record:
    key = said.one_of(*(first for first, _ in TEXT_PAIRS))
    second = dict(TEXT_PAIRS)[key]
    made = {"text": said.text(key), "label": label_name(said.value("label"), said.source)}
    if second and said.has(second):
        made["text_pair"] = said.text(second)
    return made


def label_name(label: Any, source: str) -> str:
    """A label's name: a text, or a whole number. Raises InvalidInput for anything else."""
    if isinstance(label, bool):
        return str(label)
    if isinstance(label, int) or (isinstance(label, float) and label.is_integer()):
        return str(int(label))
    if isinstance(label, str) and label.strip():
        name = checked_text(label, source, '"label"').strip()
        if len(name) > MAX_LABEL_CHARS:
            raise fault(
                source, f'"label" has {len(name)} characters', f"A name has at most {MAX_LABEL_CHARS}"
            )
        return name
    what = "empty" if label in (None, "") or isinstance(label, str) else f"{kind_of(label)}, {label!r:.40}"
    raise fault(
        source, f'"label" is {what}', "A label is a name, such as sport, or a whole number; one per text"
    )


def _tagged(said: _Said) -> Record:
    words, key = said.list_of_texts("tokens"), said.one_of(*TAGS)
    tags = unpacked_json(said.value(key), f'{said.source}: "{key}"')
    if not isinstance(tags, list):
        said.refuse(f'"{key}" is {kind_of(tags)}, not a list', 'Right would be ["B-PER", "O"]')
    if len(tags) != len(words):
        said.refuse(f"has {len(words)} tokens and {len(tags)} {key}", "Give each word one tag")
    for n, tag in enumerate(tags):
        if isinstance(tag, int | float):
            said.refuse(f'"{key}"[{n}] is the number {tag}', "Write the tags' names, such as B-PER, I-PER, O")
    return {"tokens": words, "tags": [label_name(tag, f'{said.source}: "{key}"[{n}]') for n, tag in enumerate(tags)]}  # fmt: skip


def _answered(said: _Said) -> Record:
    context, question = said.text("context"), said.text("question")
    answers = unpacked_json(said.value("answers"), f'{said.source}: "answers"')
    if isinstance(answers, list) and all(
        isinstance(each, dict) for each in answers
    ):  # as in SQuAD's own files
        answers = {key: [each.get(key) for each in answers] for key in ("text", "answer_start")}
    answers = answers or {"text": [], "answer_start": []}
    texts, starts = (
        (answers.get("text"), answers.get("answer_start")) if isinstance(answers, dict) else (None, None)
    )
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        said.refuse(
            '"answers" does not say texts and where they begin',
            'Right would be {"text": ["a dog"], "answer_start": [17]}, and two empty lists where there is no answer',
        )
    if len(texts) > MAX_ANSWERS:
        said.refuse(f"has {len(texts)} answers", f"A question has at most {MAX_ANSWERS}")
    for n, (text, start) in enumerate(zip(texts, starts, strict=True)):
        _check_answer(said, context, text, start, n)
    return {"context": context, "question": question, "answers": {"text": texts, "answer_start": starts}}


def _check_answer(said: _Said, context: str, text: Any, start: Any, number: int) -> None:
    if not isinstance(text, str) or not text.strip():
        said.refuse(
            f"answers.text[{number}] is {kind_of(text)} without words", "Write the words of the answer"
        )
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        said.refuse(f"answers.answer_start[{number}] is {start!r:.40}", "Right would be a place, from 0")
    if context[start : start + len(text)] == text:
        return
    place = context.find(text)
    where = f"It begins at {place}" if place >= 0 else "The context does not have it anywhere"
    said.refuse(
        f"answers.answer_start[{number}] is {start}, and the context has {context[start : start + len(text)]!r:.60} there, "
        f"not {text!r:.60}",
        f"{where}; places count characters, not bytes",
    )


def _scored(said: _Said) -> Record:
    pair = next(pair for pair in SCORED if pair[0] in said.record and pair[1] in said.record)
    key = said.one_of(*SCORES)
    given = said.value(key)
    try:
        score = float(given)
    except (TypeError, ValueError):
        said.refuse(f'"{key}" is {given!r:.40}', "A score is a number from 0 (unrelated) to 1")
    if not math.isfinite(score) or not 0 <= score <= 1:
        said.refuse(
            f'"{key}" is {score:g}', "A score goes from 0 (unrelated) to 1: divide all by the largest"
        )
    return {"query": said.text(pair[0]), "document": said.text(pair[1]), "score": score}


def _paired(said: _Said) -> Record:
    key = said.one_of(*ANCHORS)
    made = {"anchor": said.text(key), "positive": said.text("positive")}
    if said.has("negative"):
        made["negative"] = said.text("negative")
        if made["negative"] == made["positive"]:
            said.refuse('has the same "positive" and "negative"', "Leave the negative out")
    return made


def _translated(said: _Said, translation: str | None) -> Record:
    if "source" in said.record and "target" in said.record:
        return {"source": said.text("source"), "target": said.text("target")}
    languages = re.fullmatch(r"([\w]+)-([\w]+)", translation or "")
    pair = unpacked_json(said.value("translation"), f'{said.source}: "translation"')
    known = ", ".join(map(str, list(pair)[:8])) if isinstance(pair, dict) else ""
    if not languages:
        said.refuse(
            f'has "translation" ({known})',
            "Say which way, as in data: {translation: en-es}, the first to the second",
        )
    texts: list[str] = []
    for language in languages.groups():
        if (
            not isinstance(pair, dict)
            or not isinstance(pair.get(language), str)
            or not pair[language].strip()
        ):
            said.refuse(f'"translation" has no text in "{language}" (it has {known or "none"})', "Add it")
        texts.append(checked_text(pair[language], said.source, f"translation.{language}"))
    return {"source": texts[0], "target": texts[1]}


def _pictured(said: _Said, folder: Path) -> Record:
    """``image``: the picture's bytes."""
    image, caption = said.one_of(*IMAGES), said.one_of(*CAPTIONS)
    return {"image": image_bytes(said.value(image), folder, said.source), "text": said.text(caption)}
