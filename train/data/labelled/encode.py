"""Labelled examples to ids, with what is said of each token in the column ``labels``:

classification       at the first token, the number of the label's name
token-classification at each word's first piece, the number of its tag's name
question-answering   at tokens where answer k begins, the bit 2k, and where it ends, 2k + 1; at the first token those of
                     a window without an answer, and :data:`CONTINUES` in all windows of a question but the first
pair-scoring         at the first token, the bits of the score as a float32
embedding, contrastive  at the first token, 0

-100 at every other token; a seq2seq example has its target after its source, and needs no such column.
``segments``: 0 in a first text, 1 in a second (and the marks after it), 2 in an embedding's negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from train.data.examples import RawExample
from train.data.labelled.example import Labelled
from train.data.options import DataOptions
from train.data.store import Example
from train.data.tokenize import Tokens

IGNORED = -100
CONTINUES = 1 << 30
NO_ANSWER = 0b11
"""At a window's first token: the answer begins and ends there, as BERT's authors mark a missing one."""


class LabelledTokens:
    """Encodes examples of ``options.kind``; ``names`` are the labels', by number."""

    def __init__(self, tokens: Tokens, options: DataOptions, names: tuple[str, ...]) -> None:
        self._tokens, self._most = tokens, options.max_tokens
        self._number = {name: number for number, name in enumerate(names)}
        self._whole = tokens.with_marks()
        self._cut = tokens.with_marks()
        stride = self._most // 4 if options.stride is None else options.stride
        self._stride = stride if options.kind == "question-answering" else 0

    def encode_and_cut(self, raw: RawExample) -> tuple[list[Example], bool]:
        """The example, in windows where it is longer than ``max_tokens`` and each can be learnt from; and whether
        something of it is left out. No window where nothing of it can be learnt within ``max_tokens``."""
        assert isinstance(raw, Labelled)
        encode = {
            "classification": self._one_label,
            "pair-scoring": self._one_label,
            "token-classification": self._tagged,
            "question-answering": self._answered,
            "embedding": self._texts,
            "seq2seq": self._sequences,
            "contrastive": self._caption,
        }[raw.kind]
        return encode(raw.record)

    def encode_and_cut_all(self, raws: Sequence[RawExample]) -> list[tuple[list[Example], bool]]:
        """:meth:`encode_and_cut` of each."""
        return [self.encode_and_cut(raw) for raw in raws]

    def _one_label(self, record: dict[str, Any]) -> tuple[list[Example], bool]:
        if "query" in record:
            texts = record["query"], record["document"]
            label = int(np.float32(record["score"]).view(np.int32))
        else:
            texts, label = (record["text"], record.get("text_pair")), self._number[record["label"]]
        encoding, is_cut = self._windows(*texts, strategy="longest_first", one=True)
        if not encoding:
            return [], True
        labels = np.full(len(encoding[0].ids), IGNORED, dtype=np.int32)
        labels[0] = label
        return [_example(encoding[0], labels)], is_cut

    def _tagged(self, record: dict[str, Any]) -> tuple[list[Example], bool]:
        """The words joined by spaces, as a text would be that a user sends; each as many pieces as it takes there."""
        words, tags = record["tokens"], record["tags"]
        ends = np.cumsum([len(word) + 1 for word in words])
        examples: list[Example] = []
        seen: set[int] = set()
        windows, is_cut = self._windows(" ".join(words))
        for encoding in windows:
            labels = np.full(len(encoding.ids), IGNORED, dtype=np.int32)
            for place, (start, stop) in enumerate(encoding.offsets):
                word = int(np.searchsorted(ends, stop - 1, side="right"))
                if stop > start and not encoding.special_tokens_mask[place] and word not in seen:
                    seen.add(word)
                    labels[place] = self._number[tags[word]]
            if (labels != IGNORED).any():
                examples.append(_example(encoding, labels))
        return examples, is_cut or len(seen) < len(words)

    def _answered(self, record: dict[str, Any]) -> tuple[list[Example], bool]:
        windows, is_cut = self._windows(record["question"], record["context"], strategy="only_second")
        answers = [
            (start + len(text) - len(text.lstrip()), start + len(text.rstrip()))
            for text, start in zip(record["answers"]["text"], record["answers"]["answer_start"], strict=True)
        ]
        examples: list[Example] = []
        is_reached = False
        for number, encoding in enumerate(windows):
            labels = np.full(len(encoding.ids), IGNORED, dtype=np.int32)
            marks = np.zeros(len(labels), dtype=np.int32)
            for k, answer in enumerate(answers):
                if span := _span(encoding, *answer):
                    marks[span[0]] |= 1 << (2 * k)
                    marks[span[1]] |= 1 << (2 * k + 1)
            is_reached = is_reached or bool(marks.any())
            labels[marks > 0] = marks[marks > 0]
            labels[0] = (0 if marks.any() else NO_ANSWER) | (CONTINUES if number else 0)
            examples.append(_example(encoding, labels))
        return (examples if is_reached or not answers else []), is_cut

    def _texts(self, record: dict[str, Any]) -> tuple[list[Example], bool]:
        ids: list[NDArray[np.int32]] = []
        segments: list[NDArray[np.int32]] = []
        any_cut = False
        for segment, key in enumerate(("anchor", "positive", "negative")):
            if key not in record:
                continue
            windows, is_cut = self._windows(record[key], one=True)
            if not windows:
                return [], True
            any_cut = any_cut or is_cut
            ids.append(np.array(windows[0].ids, dtype=np.int32))
            segments.append(np.full(len(ids[-1]), segment, dtype=np.int32))
        labels = np.full(sum(map(len, ids)), IGNORED, dtype=np.int32)
        labels[0] = 0
        return [Example(np.concatenate(ids), labels != IGNORED, labels, np.concatenate(segments))], any_cut

    def _caption(self, record: dict[str, Any]) -> tuple[list[Example], bool]:
        windows, is_cut = self._windows(record["text"], one=True)
        if not windows:
            return [], True
        labels = np.full(len(windows[0].ids), IGNORED, dtype=np.int32)
        labels[0] = 0
        return [_example(windows[0], labels)], is_cut

    def _sequences(self, record: dict[str, Any]) -> tuple[list[Example], bool]:
        """Each side up to ``max_tokens``; the target ends with the end token, unless it is cut."""
        (source, *_), source_cut = self._windows(record["source"], one=True)
        target = self._whole.encode(record["target"], add_special_tokens=False).ids
        target = np.array([*target, *self._tokens.eos], dtype=np.int32)
        kept = target[: self._most]
        ids = np.concatenate([np.array(source.ids, dtype=np.int32), kept])
        return [Example(ids, np.arange(len(ids)) >= len(source.ids))], source_cut or len(kept) < len(target)

    def _windows(
        self, text: str, pair: str | None = None, strategy: str = "longest_first", *, one: bool = False
    ) -> tuple[list[Encoding], bool]:
        """The texts in windows of at most ``max_tokens`` with the marks around each, and whether there were more than
        the ``one`` that was asked for; no window where the first text alone is too long for two."""
        encoding = self._whole.encode(text, pair)
        if len(encoding.ids) <= self._most:
            return ([encoding] if encoding.ids else []), False
        marks = self._cut.num_special_tokens_to_add(pair is not None)
        room = self._most - marks
        if strategy == "only_second":
            room -= len(self._whole.encode(text, add_special_tokens=False).ids)
        if room < 1 or (pair is not None and room < 2):
            return [], True
        stride = 0 if one else min(self._stride, room - 1)
        self._cut.enable_truncation(self._most, stride=stride, strategy=strategy)
        encoding = self._cut.encode(text, pair)
        return ([encoding], True) if one else ([encoding, *encoding.overflowing], False)


def _example(encoding: Encoding, labels: NDArray[np.int32]) -> Example:
    ids, segments = (np.array(each, dtype=np.int32) for each in (encoding.ids, encoding.type_ids))
    sequence = np.array([-1 if each is None else each for each in encoding.sequence_ids], dtype=np.int32)
    if not segments.any() and (sequence == 1).any():  # a tokenizer that does not number its texts
        segments[int(np.argmax(sequence == 1)) :] = 1
    return Example(ids, labels != IGNORED, labels, segments)


def _span(encoding: Encoding, start: int, stop: int) -> tuple[int, int] | None:
    """The first and the last token of these characters of the second text, if all of them are here."""
    inside = [
        place
        for place, ((begin, end), text) in enumerate(
            zip(encoding.offsets, encoding.sequence_ids, strict=True)
        )
        if text == 1 and begin < stop and end > start
    ]
    if not inside or encoding.offsets[inside[0]][0] > start or encoding.offsets[inside[-1]][1] < stop:
        return None
    return inside[0], inside[-1]
