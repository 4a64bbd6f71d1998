"""Texts and conversations to token ids, with the mask that says which of them are learnt."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from everlearn.chat.stops import stops_of
from everlearn.chat.template import template_source, token_names
from everlearn.errors import Corrupt, NotFound, Unsupported
from train.data.chat_template import ChatTemplate, Segment
from train.data.examples import Chat, RawExample, Text
from train.data.store import Example


class Tokens:
    """The tokenizer and the chat template of a Hugging Face directory.

    ``sha256`` names everything that decides which ids a text becomes. ``bos`` are the ids that the model expects
    before a text (often none), ``eos`` the one that ends it, ``stops`` what ends an answer. ``vocab_size`` is the
    largest id + 1.
    Raises NotFound without a tokenizer.json, Corrupt where it cannot be read.
    """

    def __init__(self, tokenizer_dir: Path) -> None:
        file = tokenizer_dir / "tokenizer.json"
        if not file.is_file():
            raise NotFound(f"{tokenizer_dir} has no tokenizer.json")
        self._marked, self._literal = _load(file), _load(file)
        self._literal.encode_special_tokens = True
        written = self._marked.to_str()
        self.stops = stops = stops_of(tokenizer_dir)
        for each in (self._marked, self._literal):
            each.add_special_tokens(stops.unmarked)  # in anyone's words they are words
        special = {
            id: token.content
            for id, token in self._marked.get_added_tokens_decoder().items()
            if token.special
        }
        self.vocab_size = max(self._marked.get_vocab(with_added_tokens=True).values()) + 1
        variables, source = token_names(tokenizer_dir), template_source(tokenizer_dir)
        self.bos, _ = _around(self._marked)
        self.eos = [] if stops.text_end is None else [stops.text_end]
        self._control_ids = np.array(sorted(stops.controls.ids.values()), dtype=np.int32)
        self.template = ChatTemplate(source, special.values(), variables, stops) if source else None
        decides = [written, source, variables, self.bos, self.eos]
        if source and not (stops.turn_ends and stops.with_turn):
            decides.append(stops.ids)  # they end answers that the template leaves open
        self.sha256 = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def encode(self, raw: RawExample, max_tokens: int) -> list[Example]:
        """The example in pieces of at most ``max_tokens``; those without a target are left out.

        A text begins as the model expects, ends with the end-of-text token, and is cut where it is longer. A
        conversation that is longer ends at ``max_tokens``, since an answer's rest would lack its question.
        Raises Unsupported for a conversation where there is no chat template.
        """
        return self.encode_and_cut(raw, max_tokens)[0]

    def encode_and_cut(self, raw: RawExample, max_tokens: int) -> tuple[list[Example], bool]:
        """:meth:`encode`, and whether something that would be learnt lies beyond ``max_tokens``."""
        if isinstance(raw, Text):
            [ids] = self._texts_ids([raw.text])
            return _pieces(ids, max_tokens), False
        if not isinstance(raw, Chat):
            raise TypeError("labelled examples are encoded by train.data.labelled.encode")
        if self.template is None:
            raise Unsupported(
                f"{raw.source or 'the example'} is a conversation, and this model has no chat template: "
                'train it on texts, {"text": …}, or start from a chat model',
                param="training_file",
            )
        conversations = [self._conversation(each) for each in self.template.conversations(raw)]
        kept = [cut for each in conversations if (cut := _beginning(each, max_tokens)).mask.any()]
        return kept, any(bool(each.mask[max_tokens:].any()) for each in conversations)

    def encode_and_cut_all(
        self, raws: Sequence[RawExample], max_tokens: int
    ) -> list[tuple[list[Example], bool]]:
        """:meth:`encode_and_cut` of each; texts at once, on as many cores as :func:`tokenizing_on` says."""
        ids = iter(self._texts_ids([raw.text for raw in raws if isinstance(raw, Text)]))
        return [
            (_pieces(next(ids), max_tokens), False)
            if isinstance(raw, Text)
            else self.encode_and_cut(raw, max_tokens)
            for raw in raws
        ]

    def encode_all(self, raws: Iterable[RawExample], max_tokens: int) -> Iterator[list[Example]]:
        """:meth:`encode` for each."""
        for raw in raws:
            yield self.encode(raw, max_tokens)

    def decode(self, example: Example) -> str:
        """The text, special tokens included: for people who look at what is learnt."""
        return self._marked.decode(example.ids.tolist(), skip_special_tokens=False)

    def with_marks(self) -> Tokenizer:
        """A tokenizer of the caller's own that puts the model's marks around a text, or two, and in which the names of
        special tokens in a text are words."""
        made = Tokenizer.from_str(self._literal.to_str())
        made.encode_special_tokens = True
        return made

    def _texts_ids(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self._literal.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array([*self.bos, *each.ids, *self.eos], dtype=np.int32) for each in encodings]

    def _conversation(self, segments: list[Segment]) -> Example:
        ids: list[np.ndarray] = [np.zeros(0, dtype=np.int32)]
        masks: list[np.ndarray] = [np.zeros(0, dtype=np.bool_)]
        for segment in segments:
            part = self._segment_ids(segment)
            if segment.stop is not None:
                part = np.append(part, np.int32(segment.stop))
            mask = np.full(len(part), segment.learnt)
            ends = np.flatnonzero(np.isin(part, self._control_ids))
            if len(ends) and not (segment.open or segment.stop is not None):
                mask[ends[-1] + 1 :] = False  # not the line break after the end token
            ids.append(part)
            masks.append(mask)
        return Example(np.concatenate(ids), np.concatenate(masks))

    def _segment_ids(self, segment: Segment) -> np.ndarray:
        ids: list[int] = []
        for n, part in enumerate(segment.parts):
            tokenizer = self._literal if n % 2 else self._marked
            ids += tokenizer.encode(part, add_special_tokens=False).ids
        return np.array(ids, dtype=np.int32)


@contextmanager
def tokenizing_on(cores: int) -> Iterator[None]:
    """Within it the library tokenizes several texts at once on ``cores``; their number is of the first use in a process."""
    wanted = {"TOKENIZERS_PARALLELISM": str(cores > 1).lower(), "RAYON_NUM_THREADS": str(cores)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _pieces(ids: np.ndarray, max_tokens: int) -> list[Example]:
    """One token alone has no target."""
    starts = range(0, len(ids), max_tokens)
    return [_all_learnt(piece) for at in starts if len(piece := ids[at : at + max_tokens]) > 1]


def _all_learnt(ids: np.ndarray) -> Example:
    mask = np.ones(len(ids), dtype=np.bool_)
    mask[0] = False
    return Example(ids, mask)


def _beginning(example: Example, max_tokens: int) -> Example:
    """Also without what comes after the last target: it would teach nothing."""
    targets = np.flatnonzero(example.mask[:max_tokens])
    stop = targets[-1] + 1 if len(targets) else 0
    mask = example.mask[:stop].copy()
    mask[:1] = False
    return Example(example.ids[:stop], mask)


def _load(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises Exception itself
        raise Corrupt(f"{file} cannot be read: {error}", param="tokenizer.json") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def marks(tokenizer_dir: Path) -> tuple[list[int], list[int]]:
    """What the tokenizer of a Hugging Face directory puts before a text, and behind it."""
    return _around(_load(tokenizer_dir / "tokenizer.json"))


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer's own post-processor puts before a text, and behind it."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    at = len(full) - len(plain) if full[-len(plain) :] == plain else full.index(plain[0])
    return full[:at], full[at + len(plain) :]
