"""The softmax of many rows of logits in one call: onnxruntime keeps no other thread of this process waiting meanwhile.

numpy gives the interpreter away at each of its passes over a vocabulary, and gets it back late while other threads
write streams: in a busy server a draw took three times as long as alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

BLOCK = 128
"""Tokens whose sum and maximum are known, so that most questions need no pass over the vocabulary."""

ROWS_AT_ONCE = 8
"""As many as stay in a core's own cache."""

INPUTS = ("logits", "factors")

COLDEST = 1e-30
"""A lower temperature would take logits beyond what float32 holds."""


@dataclass(frozen=True)
class Shares:
    """The tokens' probabilities of one row, filled up with zeros to whole blocks."""

    each: NDArray[np.float32]
    """(blocks, BLOCK)"""
    sums: NDArray[np.float32]
    """(blocks,)"""
    largest: NDArray[np.float32]
    """(blocks,)"""

    @property
    def best(self) -> float:
        return float(self.largest.max())

    def above(self, least: float) -> Shares:
        """Only the tokens whose share is at least ``least``."""
        kept = np.where(self.each >= least, self.each, np.float32(0))
        return Shares(kept, kept.sum(axis=1), kept.max(axis=1))

    def heavier(self, share: float, enough: float) -> float:
        """The sum of all tokens with more than ``share``; from ``enough`` on, any number that it is not below."""
        blocks = (self.largest > share).nonzero()[0]
        least = np.maximum(self.sums[blocks] - np.float32(BLOCK * share), self.largest[blocks])
        if (known := float(least.sum(dtype=np.float64))) >= enough:
            return known
        within = self.each[blocks]
        return float(within[within > share].sum(dtype=np.float64))


class Softmax:
    """The softmax over a vocabulary; the bits of a row do not depend on the others. Not thread-safe."""

    def __init__(self, vocab_size: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.blocks = -(-vocab_size // BLOCK)
        graph = softmax_graph(vocab_size, self.blocks)
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()

    def shares(self, logits: NDArray[np.float32], temperatures: Sequence[float]) -> list[Shares]:
        """Of each row of ``logits`` (n, vocab), divided by its temperature, which is above 0."""
        factors = np.array([[1 / max(one, COLDEST)] for one in temperatures], np.float32)
        rows, logits = len(logits), np.ascontiguousarray(logits, np.float32)
        each = np.empty((rows, self.blocks, BLOCK), np.float32)
        sums, largest = np.empty((2, rows, self.blocks), np.float32)
        arrays = {
            "logits": logits,
            "factors": factors,
            "each": each.reshape(rows, self.blocks * BLOCK),
            "sums": sums,
            "largest": largest,
        }
        for begin in range(0, rows, ROWS_AT_ONCE):
            for name, array in arrays.items():
                some = array[begin : begin + ROWS_AT_ONCE]
                bind = self.binding.bind_input if name in INPUTS else self.binding.bind_output
                bind(name, "cpu", 0, np.float32, some.shape, some.ctypes.data)
            self.session.run_with_iobinding(self.binding)
        return [Shares(*row) for row in zip(each, sums, largest, strict=True)]


def softmax_graph(vocab_size: int, blocks: int) -> bytes:
    """From logits (rows, vocab) and factors (rows, 1) to what :class:`Shares` holds of each row."""
    missing = blocks * BLOCK - vocab_size
    constants = {"shape": np.array([0, blocks, BLOCK], np.int64), "inside": np.array([2], np.int64)}
    nodes = [
        helper.make_node("Mul", ["logits", "factors"], ["scaled"]),
        helper.make_node("Softmax", ["whole" if missing else "scaled"], ["each"], axis=-1),
        helper.make_node("Reshape", ["each", "shape"], ["parted"]),
        helper.make_node("ReduceSum", ["parted", "inside"], ["sums"], keepdims=0),
        helper.make_node("ReduceMax", ["parted", "inside"], ["largest"], keepdims=0),
    ]
    if missing:
        constants |= {
            "missing": np.array([0, 0, 0, missing], np.int64),
            "nothing": np.array(-np.inf, np.float32),
        }
        nodes.insert(1, helper.make_node("Pad", ["scaled", "missing", "nothing"], ["whole"]))
    graph = helper.make_graph(
        nodes,
        "softmax",
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", vocab_size]),
            helper.make_tensor_value_info("factors", TensorProto.FLOAT, ["rows", 1]),
        ],
        [
            helper.make_tensor_value_info("each", TensorProto.FLOAT, ["rows", blocks * BLOCK]),
            helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["rows", blocks]),
            helper.make_tensor_value_info("largest", TensorProto.FLOAT, ["rows", blocks]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()
