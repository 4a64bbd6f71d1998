"""An encoder with a head in PyTorch, of texts, tokens, answers or pairs; and how near another one's predictions are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.sentence_encoder import inputs_of, probe_texts, truncating_tokenizer
from everlearn.bundles.tasks import Task
from train.models.load import load_model

OUTPUTS: Mapping[Task, Mapping[str, Mapping[int, str]]] = {
    "classify": {"logits": {0: "batch"}},
    "score": {"logits": {0: "batch"}},
    "token_classify": {"logits": {0: "batch", 1: "seq"}},
    "question_answer": {
        "start_logits": {0: "batch", 1: "seq"},
        "end_logits": {0: "batch", 1: "seq"},
    },
}
"""The outputs by name, with their free axes: those that transformers and optimum give them."""
OF_PAIRS: frozenset[Task] = frozenset({"score", "question_answer"})
QUERY_WORDS = 8
BATCH = 8

Predict = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]
"""From an encoder's inputs, int64 (batch, seq) each, to its outputs in order: float32 (batch, labels), (batch, seq, labels)
or, twice, (batch, seq)."""


class HeadedEncoder(nn.Module):
    """``body`` is transformers' model with its head. ``inputs`` and ``outputs``: their names, in order.

    ``rounded``: how the names of the layers begin that may keep fewer bits; the head, which is small, keeps all of them.
    """

    def __init__(self, body: Any, task: Task) -> None:
        super().__init__()
        self.body, self.task, self.outputs = body, task, OUTPUTS[task]
        self.rounded = f"{body.base_model_prefix}."
        takes_types = "token_type_ids" in inspect.signature(body.forward).parameters
        self.inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if takes_types else [])]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors: int64 (batch, seq) each; returns the outputs in float32, as :data:`Predict` has them."""
        said = self.body(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(said[name] for name in self.outputs)

    @torch.inference_mode()
    def predict(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """A :data:`Predict`."""
        return [one.numpy() for one in self(*(torch.from_numpy(feeds[name]) for name in self.inputs))]


def load_headed(model_dir: Path, task: Task) -> HeadedEncoder:
    """Float32, on the CPU. Raises InvalidInput naming a tensor that is missing, misshapen or left over."""
    return HeadedEncoder(load_model(model_dir, task), task).eval()


def is_multi_label(config: Mapping[str, Any]) -> bool:
    """Whether each label of a text is a decision of its own, as config.json says."""
    return config.get("problem_type") == "multi_label_classification"


def probe_batches(model_dir: Path, task: Task) -> list[dict[str, np.ndarray]]:
    """Inputs made of the held-out text's pieces, in padded batches as an engine sends them; for pairs, with a query each."""
    tokenizer, texts = truncating_tokenizer(model_dir), probe_texts()
    found: list[Any] = texts
    if task in OF_PAIRS:
        queries = [" ".join(text.split()[:QUERY_WORDS]) for text in texts]
        found = list(zip(queries, texts[1:] + texts[:1], strict=True))
    return [inputs_of(tokenizer, found[start : start + BATCH]) for start in range(0, len(found), BATCH)]


def compare_predictions(
    ours: Predict, theirs: Predict, model_dir: Path, task: Task, multi_label: bool
) -> dict[str, Any]:
    """How far our predictions are from theirs on :func:`probe_batches`.

    ``prediction_divergence``: mean Kullback-Leibler divergence in nats per prediction (a text's or a token's label, a
    pair's score, where an answer starts and where it ends); ``prediction_agreement``: the share with the same
    most likely outcome; ``logits_difference``: the largest; ``logits_range``: the largest of theirs.
    """
    divergences: list[np.ndarray] = []
    same: list[np.ndarray] = []
    difference = largest = 0.0
    for feeds in probe_batches(model_dir, task):
        mask = feeds["attention_mask"].astype(bool)  # (batch, seq)
        for our, their in zip(ours(feeds), theirs(feeds), strict=True):
            shown = mask if our.shape[:2] == mask.shape else np.ones(len(our), bool)
            difference = max(difference, float(np.abs(our - their)[shown].max()))
            largest = max(largest, float(np.abs(their)[shown].max()))
            logs = [log_probabilities(one, mask, task, multi_label) for one in (our, their)]
            divergence = (np.exp(logs[1]) * (logs[1] - logs[0])).sum(-1)
            agreed = logs[0].argmax(-1) == logs[1].argmax(-1)
            kept = shown if divergence.shape == shown.shape else slice(None)
            divergences.append(divergence[kept].reshape(-1))
            same.append(agreed[kept].reshape(-1))
    every, agreeing = np.concatenate(divergences), np.concatenate(same)
    return {
        "prediction_divergence": round(max(0.0, float(every.mean())), 6),
        "prediction_agreement": round(float(agreeing.mean()), 4),
        "logits_difference": round(difference, 6),
        "logits_range": round(largest, 3),
        "predictions": len(every),
    }


def log_probabilities(logits: np.ndarray, mask: np.ndarray, task: Task, multi_label: bool) -> np.ndarray:
    """Of the outcomes of each prediction, on the last axis; of the places of an answer, those in the padding are none."""
    if task == "score" or multi_label:
        logits = np.stack([logits, np.zeros_like(logits)], -1)  # (batch, labels, 2): yes and no
    elif task == "question_answer":
        logits = np.where(mask, logits, -1e9)
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
