"""An encoder in ONNX: texts, or pairs of them, to what its graph makes of them, with dynamic batching."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from everlearn.bundles.text_positions import context_of_encoder
from everlearn.cpu_features import make_exact
from everlearn.errors import Corrupt, InvalidInput
from serve.engines.context_bound import Bound, ContextLengthExceeded
from serve.engines.onnx.encoders.batches import BATCH_TOKENS, SharedBatches
from serve.engines.onnx.session import open_session
from serve.engines.tokenizer import whole
from serve.protocol.body import WHOLE_CONTEXT

Rows = tuple[NDArray[np.float32], ...]
"""What the graph's outputs say of one text: (…,) of the whole text, (tokens, …) of each token."""


@dataclass(frozen=True)
class Encoded:
    """A text's tokens: (n,) each. ``types``: 0, and 1 in the second text of a pair. ``offsets``: where they are in the text."""

    ids: list[int]
    types: list[int]
    offsets: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Cut:
    """``tokens`` of a text or a pair together, special ones counted; :data:`WHOLE_CONTEXT`: as many as the model reads.
    ``second``: tokens of a pair's second text."""

    tokens: int | None
    second: int | None = None

    @property
    def is_asked(self) -> bool:
        return self.tokens is not None or self.second is not None


def longest_first(lengths: Sequence[int], room: int) -> list[int]:
    """How many tokens of a text, or of each of a pair, stay in ``room`` that they exceed together."""
    if len(lengths) == 1:
        return [room]
    shorter = min(lengths)
    fewer = room // 2 if 2 * shorter > room else shorter
    return [room - fewer, fewer] if lengths[0] > lengths[1] else [fewer, room - fewer]


class EncoderModel(SharedBatches[Encoded, Rows]):
    """One encoder.

    ``graph``: its file in the bundle. ``outputs``: the graph's, by name, that each text gets. ``context``: tokens of one text; None: as many as its
    config.json says that it has positions for. ``places``: whether each token's place in its text is wanted.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        graph: str = "model.onnx",
        outputs: Sequence[str],
        threads: int,
        queue_limit: int,
        context: int | None = None,
        places: bool = False,
    ) -> None:
        super().__init__(BATCH_TOKENS, queue_limit)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        make_exact(options)
        self.session = open_session(bundle / graph, bundle, options)
        self.inputs = {one.name for one in self.session.get_inputs()}
        shapes = {one.name: one.shape for one in self.session.get_outputs()}
        if not set(outputs) <= shapes.keys():
            raise Corrupt(
                f"{bundle.name}: the graph's outputs are {', '.join(shapes)}, not {', '.join(outputs)}"
            )
        self.outputs = list(outputs)
        self.by_token = [len(shapes[name]) > 1 and shapes[name][1] == "seq" for name in outputs]
        path = bundle / "tokenizer.json"
        self.tokenizer = Tokenizer.from_file(str(path))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.context = context or context_of_encoder(json.loads((bundle / "config.json").read_text()))
        definition = json.loads(path.read_bytes())
        longest = max(len(token.encode()) for token in self.tokenizer.get_vocab())
        self.bound = Bound(self.tokenizer, definition, longest, self.context)
        self.places = places

    def encode(
        self, texts: Sequence[str | tuple[str, str]], param: str = "input", cut: Cut | None = None
    ) -> list[Encoded]:
        """Token ids with the encoder's own special tokens; raises InvalidInput for an empty or too long text.

        ``param``: the request's field that errors name. ``cut``: what is too long is cut, not refused.
        """
        cleaned = [tuple(map(whole, one)) if isinstance(one, tuple) else whole(one) for one in texts]
        for index, one in enumerate(cleaned):
            if not all(one if isinstance(one, tuple) else (one,)):
                raise InvalidInput(f"{param}[{index}] is empty", param=param)
        if cut and cut.is_asked:
            return self._checked([self._cut(one, cut) for one in cleaned], param)
        for index, one in enumerate(cleaned):
            parts = list(one) if isinstance(one, tuple) else [one]
            self.bound.check(parts, f"{param}[{index}]")
            for part in parts:
                self.bound.probe(part, f"{param}[{index}]")
        return self._checked(self._encode_batch(cleaned), param)

    def _checked(self, encodings: Sequence[Encoding], param: str) -> list[Encoded]:
        for index, one in enumerate(encodings):
            if len(one.ids) > self.context:
                raise ContextLengthExceeded(
                    f"this model's context is {self.context} tokens; {param}[{index}] has {len(one.ids)}",
                    param=param,
                )
        return [Encoded(one.ids, one.type_ids, one.offsets if self.places else ()) for one in encodings]

    def _cut(self, text: str | tuple[str, str], cut: Cut) -> Encoding:
        """Its first tokens: of a pair, as Hugging Face's ``longest_first`` leaves them."""
        parts = [text] if isinstance(text, str) else [*text]
        special = self.tokenizer.num_special_tokens_to_add(len(parts) == 2)
        most = self._most(cut, special, len(parts))
        within = [most or self.context, min(most or self.context, cut.second or self.context)]
        begun = [self.bound.beginning(part, tokens) for part, tokens in zip(parts, within, strict=False)]
        read = self._encode_batch(begun, special=False)
        if cut.second is not None and len(read) == 2:
            read[1].truncate(cut.second)
        if most is not None and sum(len(one.ids) for one in read) > most - special:
            for one, tokens in zip(
                read, longest_first([len(one.ids) for one in read], most - special), strict=True
            ):
                one.truncate(tokens)
        return self.tokenizer.post_process(*read)

    def _most(self, cut: Cut, special: int, parts: int) -> int | None:
        """Tokens of a text or a pair. Raises InvalidInput."""
        if cut.tokens is None:
            return None
        if cut.tokens > self.context:
            raise InvalidInput(
                f"truncate_prompt_tokens is {cut.tokens}, and this model's context is {self.context} tokens",
                param="truncate_prompt_tokens",
            )
        if 0 < cut.tokens < special + parts:
            raise InvalidInput(
                f"truncate_prompt_tokens is {cut.tokens}; with the {special} special tokens of this model at least "
                f"{special + parts} are needed",
                param="truncate_prompt_tokens",
            )
        return self.context if cut.tokens == WHOLE_CONTEXT else cut.tokens

    def _encode_batch(self, texts: Sequence[Any], *, special: bool = True) -> list[Encoding]:
        encode = self.tokenizer.encode_batch if self.places else self.tokenizer.encode_batch_fast
        return encode(texts, add_special_tokens=special)

    def _size(self, item: Encoded) -> int:
        return len(item.ids)

    def _run(self, batch: list[Encoded]) -> list[Rows]:
        """Pad to (batch, longest), run, and cut each text's rows out."""
        shape = (len(batch), max(len(one.ids) for one in batch))
        ids, mask, types = (np.zeros(shape, np.int64) for _ in range(3))
        for row, one in enumerate(batch):
            ids[row, : len(one.ids)] = one.ids
            types[row, : len(one.ids)] = one.types
            mask[row, : len(one.ids)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        computed = self.session.run(self.outputs, {k: v for k, v in feeds.items() if k in self.inputs})
        return [
            tuple(
                output[row, : len(one.ids)] if by_token else output[row]
                for output, by_token in zip(computed, self.by_token, strict=True)
            )
            for row, one in enumerate(batch)
        ]
