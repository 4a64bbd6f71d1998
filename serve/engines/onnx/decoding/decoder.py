"""A decoder-only model in the onnxruntime-genai layout, run row by row out of one shared KV cache.

The graph's GroupQueryAttention writes new keys and values in place when its `past` and `present` are the same
memory, and takes each row's length from the sum of that row's attention mask. So one cache of shape
(rows, kv_heads, context, head_size) per layer serves any contiguous range of rows, at any lengths.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import structlog
from numpy.typing import NDArray
from onnx import helper
from pydantic import BaseModel

from everlearn.chat.stops import stops_of
from everlearn.cpu_features import make_exact
from everlearn.errors import Corrupt, Unsupported
from serve.engines.onnx.decoding.kv_cache import Block, Cache, Element
from serve.engines.onnx.session import open_session

log = structlog.get_logger()

ort.set_default_logger_severity(4)

LAST = np.array([-1], np.int64)

PAGE_TOKENS = 256
"""Rows hold a multiple of this, so that each starts on a page of memory."""


class SamplingDefaults(BaseModel):
    """What a request that says nothing is sampled with: OpenAI's defaults, unless the model brings its own."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class DecoderConfig(BaseModel):
    """The part of genai_config.json that running the graph needs."""

    layers: int
    kv_heads: int
    head_size: int
    vocab_size: int
    context: int
    eos_ids: list[int]
    filename: str
    past_key: str
    past_value: str
    present_key: str
    present_value: str
    defaults: SamplingDefaults

    @classmethod
    def read(cls, bundle: Path) -> DecoderConfig:
        """Read `bundle/genai_config.json`; raises Corrupt when it is missing a field."""
        try:
            config = json.loads((bundle / "genai_config.json").read_text())
            model, search = config["model"], config.get("search", {})
            decoder = model["decoder"]
            eos = model["eos_token_id"]
            named: list[int] = eos if isinstance(eos, list) else [eos]
            return cls(
                layers=decoder["num_hidden_layers"],
                kv_heads=decoder["num_key_value_heads"],
                head_size=decoder["head_size"],
                vocab_size=model["vocab_size"],
                context=model["context_length"],
                eos_ids=list(dict.fromkeys([*named, *stops_of(bundle).ids])),
                filename=decoder["filename"],
                past_key=decoder["inputs"]["past_key_names"],
                past_value=decoder["inputs"]["past_value_names"],
                present_key=decoder["outputs"]["present_key_names"],
                present_value=decoder["outputs"]["present_value_names"],
                defaults=SamplingDefaults(**(search if search.get("do_sample") else {})),
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise Corrupt(f"genai_config.json of {bundle.name} cannot be read: {error!r}") from error


POSITIONS = "everlearn.positions"
"""The graph's input that says at which positions logits are wanted: (positions,)."""


AFTER_HEAD = ("Add", "Cast", "Div", "Mul", "Tanh")
"""What a graph does with logits one by one: a bias, a scale, a soft cap."""


def head_of(model: onnx.ModelProto) -> onnx.NodeProto:
    """The product that makes logits. Raises Unsupported where it is not found behind :data:`AFTER_HEAD`."""
    producers = {name: node for node in model.graph.node for name in node.output}
    head = producers["logits"]
    while head.op_type in AFTER_HEAD:
        before = [producers[name] for name in head.input if name in producers]
        computed = [node for node in before if node.op_type != "Constant"]
        if len(computed) != 1:
            break
        head = computed[0]
    if head.op_type not in ("MatMul", "MatMulNBits"):
        raise Unsupported(f"the head of this graph is {head.op_type}; expected MatMul or MatMulNBits")
    return head


def chosen_positions_graph(path: Path) -> bytes:
    """The graph at `path`, computing logits at the positions that an input names: (batch, positions, vocab).

    Prefill needs the last alone, and the head is a fifth of a small model's work; scoring a prompt needs all. The
    weights stay in the external data file.
    """
    model = onnx.load(path, load_external_data=False)
    logits = next(output for output in model.graph.output if output.name == "logits")
    if logits.type.tensor_type.shape.dim[1].dim_value == 1:  # an edge folder's: of the last position alone
        return model.SerializeToString()
    head = head_of(model)
    if "prune" not in head.input[0]:
        hidden = head.input[0]
        model.graph.input.append(helper.make_tensor_value_info(POSITIONS, onnx.TensorProto.INT64, ["chosen"]))
        gather = helper.make_node("Gather", [hidden, POSITIONS], ["everlearn.chosen"], axis=1)
        head.input[0] = "everlearn.chosen"
        nodes = list(model.graph.node)
        nodes.insert(nodes.index(head), gather)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        logits.type.tensor_type.shape.dim[1].Clear()
        logits.type.tensor_type.shape.dim[1].dim_param = "chosen"
    return model.SerializeToString()


class Decoder:
    """One model, `rows` sequences at once.

    Not thread-safe: one thread calls it. Shapes: a row holds up to `context` tokens. `drafts`: how many guessed tokens
    `verify` may be given.
    """

    def __init__(
        self, bundle: Path, *, rows: int, threads: int, context: int | None = None, drafts: int = 0
    ) -> None:
        self.config = DecoderConfig.read(bundle)
        self.context = min(context or self.config.context, self.config.context)
        self.rows = rows
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        make_exact(options)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle))
        graph = chosen_positions_graph(bundle / self.config.filename)
        self.session = open_session(graph, bundle, options)
        capacity = -(-self.context // PAGE_TOKENS) * PAGE_TOKENS
        shape = (rows, self.config.kv_heads, capacity, self.config.head_size)
        views = drafts + 1 if drafts else 0
        types = {one.name: one.type for one in self.session.get_inputs()}
        self.scores = POSITIONS in types
        """Whether `score` works: not where the graph was exported for the last position alone."""
        self.element: Element = np.int8 if types[self.config.past_key % 0] == "tensor(int8)" else np.float32
        self.keys = [Cache(shape, self.element, views) for _ in range(self.config.layers)]
        self.values = [Cache(shape, self.element, views) for _ in range(self.config.layers)]
        self.bindings: dict[tuple[int, int, bool], Any] = {}
        self.drafts = drafts if drafts and self._verifies(drafts) else 0

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token over all layers."""
        numbers = self.config.layers * 2 * self.config.kv_heads * self.config.head_size
        return numbers * np.dtype(self.element).itemsize

    def prefill(self, row: int, tokens: NDArray[np.int64], start: int) -> NDArray[np.float32]:
        """Append `tokens` (n,) at position `start` of `row`; returns the last token's logits (vocab,)."""
        mask = np.ones((1, start + len(tokens)), np.int64)
        return self._run(self._binding(row, row + 1), tokens.reshape(1, -1), mask)[0, 0]

    def score(self, row: int, tokens: NDArray[np.int64], start: int) -> NDArray[np.float32]:
        """As `prefill`, with the logits after each of `tokens`: (n, vocab)."""
        mask = np.ones((1, start + len(tokens)), np.int64)
        everywhere = np.arange(len(tokens))
        return self._run(self._binding(row, row + 1), tokens.reshape(1, -1), mask, everywhere)[0]

    def decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """One step of rows 0..n: append tokens[i] so that row i holds lengths[i] tokens.

        tokens, lengths: (n,); returns logits (n, vocab).
        """
        return self._run(self._binding(0, len(tokens)), tokens.reshape(-1, 1), mask_of(lengths))[:, 0]

    def verify(self, tokens: NDArray[np.int64], length: int) -> NDArray[np.float32]:
        """Append `tokens` (n,) to row 0, the first of which makes it `length` tokens long; logits (n, vocab) after each.

        They are the very bits that `decode` gives to each token in company: here too each is a row of a batch, only
        that all rows are the memory of row 0. GroupQueryAttention takes one token per row where rows have a past, and
        writes the new keys and values of all rows before it reads any.
        """
        return self._append(tokens, length + np.arange(len(tokens)))

    def _append(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        binding = self._binding(0, len(tokens), first_row=True)
        return self._run(binding, tokens.reshape(-1, 1), mask_of(lengths))[:, 0]

    def _verifies(self, drafts: int) -> bool:
        """Whether several tokens at once give the bits of one at a time, as this model's attention runs here."""
        known = 8
        tokens = np.arange(1, known + drafts + 2) % self.config.vocab_size
        self.prefill(0, tokens[:known], 0)
        lengths = np.arange(known + 1, len(tokens) + 1)
        # The last token first: attention that reads before all is written finds nothing there, in whatever order it runs.
        at_once = self._append(tokens[known:][::-1].copy(), lengths[::-1])[::-1]
        one_by_one = [self.verify(tokens[[at, at]], at + 1)[0] for at in range(known, len(tokens))]
        self.release(0)
        same = np.array_equal(at_once, one_by_one)
        if not same:
            log.warning(
                "speculative_tokens is off: this model's attention cannot check several tokens at once"
            )
        return same

    def read(self, row: int, tokens: int) -> Block:
        """A copy of the first `tokens` keys and values of `row`: (2 * layers, kv_heads, tokens, head_size)."""
        config = self.config
        block = np.empty((2 * config.layers, config.kv_heads, tokens, config.head_size), self.element)
        for kept, cache in zip(block, self.caches, strict=True):
            kept[:] = cache.array[row, :, :tokens]
        return block

    def write(self, row: int, block: Block, tokens: int) -> None:
        """Put the first `tokens` keys and values of a block made by `read` at the start of `row`."""
        for kept, cache in zip(block, self.caches, strict=True):
            cache.array[row, :, :tokens] = kept[:, :tokens]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` positions of row `source` onto row `target`."""
        for cache in self.caches:
            cache.array[target, :, :tokens] = cache.array[source, :, :tokens]

    def release(self, row: int) -> None:
        """Give the memory of `row` back to the system."""
        for cache in self.caches:
            cache.release(row)

    @property
    def caches(self) -> list[Cache]:
        """Keys, then values, of every layer."""
        return self.keys + self.values

    def _run(
        self,
        binding: Any,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        positions: NDArray[np.int64] = LAST,
    ) -> NDArray[np.float32]:
        """Logits (batch, positions, vocab)."""
        logits = np.empty((len(ids), len(positions), self.config.vocab_size), np.float32)
        if self.scores:
            binding.bind_input(POSITIONS, "cpu", 0, np.int64, positions.shape, positions.ctypes.data)
        binding.bind_input("input_ids", "cpu", 0, np.int64, ids.shape, ids.ctypes.data)
        binding.bind_input("attention_mask", "cpu", 0, np.int64, mask.shape, mask.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self.session.run_with_iobinding(binding)
        return logits

    def _binding(self, low: int, high: int, *, first_row: bool = False) -> Any:
        """The IO binding of rows (or views of the first) low..high, past and present the same memory; made once."""
        if (low, high, first_row) in self.bindings:
            return self.bindings[low, high, first_row]
        binding = self.session.io_binding()
        config = self.config
        sides = (
            (config.past_key, config.present_key, self.keys),
            (config.past_value, config.present_value, self.values),
        )
        for past, present, caches in sides:
            for layer, cache in enumerate(caches):
                rows = (cache.first_row if first_row else cache.array)[low:high]
                where = ("cpu", 0, self.element, rows.shape, rows.ctypes.data)
                binding.bind_input(past % layer, *where)
                binding.bind_output(present % layer, *where)
        self.bindings[low, high, first_row] = binding
        return binding


def mask_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The attention mask (n, longest) of rows that hold `lengths` (n,) tokens."""
    return (np.arange(int(lengths.max())) < lengths[:, None]).astype(np.int64)
