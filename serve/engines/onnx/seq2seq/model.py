"""An encoder-decoder's two graphs: sources in, then one token after the other of each row's answer.

The graphs are those of ``compress.targets.onnx_encoder_decoder``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from everlearn.chat.stops import stops_of
from everlearn.cpu_features import make_exact
from everlearn.errors import Corrupt
from serve.engines.onnx.decoding.decoder import SamplingDefaults
from serve.engines.onnx.session import open_session

Arrays = list[NDArray[np.float32]]


@dataclass
class State:
    """What rows have read and said. mask: int64 (rows, seq); cross: (rows, heads, seq, head) each; past: (rows, heads,
    tokens, head) each."""

    mask: NDArray[np.int64]
    cross: Arrays
    past: Arrays

    def keep(self, rows: Sequence[int]) -> None:
        """These alone go on."""
        self.mask = self.mask[rows]
        self.cross = [one[rows] for one in self.cross]
        self.past = [one[rows] for one in self.past]


class EncoderDecoder:
    """Both graphs. Not thread-safe: one thread calls it."""

    def __init__(self, bundle: Path, *, threads: int) -> None:
        said = json.loads((bundle / "config.json").read_text())
        file = bundle / "generation_config.json"
        said |= json.loads(file.read_text()) if file.is_file() else {}
        config = json.loads((bundle / "config.json").read_text())
        self.context = int(config["max_length"])
        """Tokens of a source, and of an answer."""
        self.vocab_size = int(config.get("decoder_vocab_size") or config["vocab_size"])
        self.first: list[int] = [
            said[name]
            for name in ("decoder_start_token_id", "forced_bos_token_id")
            if said.get(name) is not None
        ]
        """What every answer begins with, and no client sees."""
        if not self.first:
            raise Corrupt(f"{bundle.name}: config.json names no decoder_start_token_id")
        eos = said.get("eos_token_id")
        named: list[int] = eos if isinstance(eos, list) else [] if eos is None else [eos]
        self.eos_ids = list(dict.fromkeys([*named, *stops_of(bundle).ids]))
        self.never = [one[0] for one in said.get("bad_words_ids") or [] if len(one) == 1]
        sampled = {
            name: said[name] for name in ("temperature", "top_p", "top_k") if said.get(name) is not None
        }
        greedy = SamplingDefaults(temperature=0.0)
        self.defaults = SamplingDefaults(**sampled) if said.get("do_sample") else greedy
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        make_exact(options)
        self.encoder = open_session(bundle / "encoder_model.onnx", bundle, options)
        self.decoder = open_session(bundle / "decoder_model.onnx", bundle, options)
        inputs = {one.name: one.shape for one in self.decoder.get_inputs()}
        self.past = {name: shape for name, shape in inputs.items() if ".decoder." in name}
        self.cross = [name for name in inputs if ".encoder." in name]

    def read(self, sources: Sequence[NDArray[np.int64]]) -> tuple[State, NDArray[np.float32]]:
        """The state after the beginning of each answer, and the logits (rows, vocab) of its first token."""
        shape = (len(sources), max(map(len, sources)))
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, tokens in enumerate(sources):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        cross: Any = self.encoder.run(None, {"input_ids": ids, "attention_mask": mask})
        rows = len(sources)
        past = [np.zeros((rows, heads, 0, size), np.float32) for _, heads, _, size in self.past.values()]
        state = State(mask, list(cross), past)
        logits = np.empty(0, np.float32)
        for token in self.first:
            logits = self.step(state, np.full(rows, token, np.int64))
        return state, logits

    def step(self, state: State, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append tokens (rows,) to the answers; the logits (rows, vocab) of the next ones."""
        feeds = {
            "input_ids": tokens[:, None],
            "encoder_attention_mask": state.mask,
            **dict(zip(self.cross, state.cross, strict=True)),
            **dict(zip(self.past, state.past, strict=True)),
        }
        logits, *past = self.decoder.run(None, feeds)
        state.past = [np.asarray(one) for one in past]
        rows = np.asarray(logits)[:, 0]
        rows[:, self.never] = -np.inf
        return rows
