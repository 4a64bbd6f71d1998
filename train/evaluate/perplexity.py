"""How good a model is, as a number that two formats of the same model share.

Perplexity is exp of the mean negative log-likelihood per token. Every format is scored on the same token
windows of the same text, so that the difference between two numbers is the model's, not the measure's.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from everlearn.errors import InvalidInput
from everlearn.importing.loaded import refuse_differences
from everlearn.instructions import make_exact

if TYPE_CHECKING:
    import numpy as np
    import torch

WINDOW = 512
"""Tokens a model sees at once: its logits take 512 x 49152 x 4 bytes = 100 MB for a vocabulary of 49k."""

HELD_TOKENS = 3072
"""Six windows: about ten seconds of a 135M model on two cores."""

OnWindow = Callable[[int, int], None]
"""Called after each window with (windows done, windows in all)."""


@dataclass(frozen=True)
class Perplexity:
    """``nll`` is the mean over ``tokens`` scored tokens, in nats."""

    nll: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll)


@dataclass(frozen=True)
class HeldText:
    """A text no recipe of everlearn trains on."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def held_text() -> HeldText:
    """The shipped text: prose of the Jargon File, in the public domain (``train/evaluate/held_out/SOURCE.md``)."""
    file = resources.files("train.evaluate") / "held_out" / "jargon.txt"
    return HeldText("jargon", file.read_text(encoding="utf-8"))


def token_windows(
    tokenizer_file: Path, text: str, limit: int = HELD_TOKENS, window: int = WINDOW
) -> np.ndarray:
    """The first ``limit`` tokens of ``text`` as rows of equal length; what does not fill a row is left out.

    Returns ids: int64 (windows, window); shorter rows where the model beside the tokenizer reads no more at once.
    Raises InvalidInput where the text is shorter than one window.
    """
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if (config := tokenizer_file.with_name("config.json")).exists():
        window = min(window, tokens_at_once(json.loads(config.read_bytes())) or window)
    ids = tokenizer.encode(text, add_special_tokens=False).ids[:limit]
    rows = len(ids) // window
    if rows == 0:
        raise InvalidInput(f"the text has {len(ids)} tokens, and needs at least {window}")
    return np.array(ids[: rows * window], dtype=np.int64).reshape(rows, window)


def tokens_at_once(config: Mapping[str, Any]) -> int | None:
    """The longest text that a model of this config.json reads by one set of rotary positions; None where it says nothing.

    ``longrope`` (``su`` in older files, and what transformers makes of Phi 3's ``yarn``) turns every token otherwise, those already read too, once a text is longer than
    the model was first trained on (arXiv 2402.13753).
    """
    most = config.get("max_position_embeddings")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for one in [each for each in rope.values() if isinstance(each, Mapping)] or [rope]:
        kind = one.get("rope_type") or one.get("type")
        if kind in ("longrope", "su") or (kind == "yarn" and config.get("model_type") == "phi3"):
            first = one.get("original_max_position_embeddings") or config.get(
                "original_max_position_embeddings"
            )
            most = min(first or most, most or first)
    return most


@dataclass(frozen=True)
class Comparison:
    """A model beside its reference on the same tokens.

    ``divergence`` is the mean Kullback-Leibler divergence KL(reference || model) of next-token distributions,
    in nats; ``agreement`` the share of positions where both hold the same token most likely.
    """

    perplexity: float
    reference_perplexity: float
    divergence: float
    agreement: float
    tokens: int


def perplexity(
    model_dir: Path,
    format: Literal["safetensors", "onnx-genai"],
    windows: np.ndarray,
    on_window: OnWindow | None = None,
) -> Perplexity:
    """Perplexity of a bundle's directory: torch in float32 for safetensors, onnxruntime for ONNX.

    windows: int64 (windows, window), of :func:`token_windows`.
    """
    logits = (
        onnx_logits(model_dir, windows)
        if format == "onnx-genai"
        else torch_logits(load_causal_lm(model_dir), windows)
    )
    return score(logits, windows, on_window)


def score(
    logits_of_windows: Iterator[np.ndarray], windows: np.ndarray, on_window: OnWindow | None = None
) -> Perplexity:
    """Fold logits, one window at a time, into a perplexity.

    logits: float32 (window, vocab); position i predicts token i + 1, so a window of n scores n - 1 tokens.
    """
    total = 0.0
    for done, (ids, logits) in enumerate(zip(windows, logits_of_windows, strict=True), start=1):
        for rows, targets in blocks(logits, ids):
            total += negative_log_likelihood(log_softmax(rows), targets)
        if on_window:
            on_window(done, len(windows))
    tokens = scored_tokens(windows)
    return Perplexity(total / tokens, tokens)


@dataclass(frozen=True)
class Predictions:
    """Two models at the positions of one window, n = window - 1. Numbers are float64 (n,), tokens int64 (n,)."""

    targets: np.ndarray
    reference_nll: np.ndarray
    nll: np.ndarray
    divergence: np.ndarray
    reference_top: np.ndarray
    top: np.ndarray


def predictions(
    reference_logits: Iterator[np.ndarray], logits: Iterator[np.ndarray], windows: np.ndarray
) -> Iterator[Predictions]:
    """What both models say of each window. reference_logits and logits: float32 (window, vocab) for each."""
    import numpy as np

    for ids, theirs, ours in zip(windows, reference_logits, logits, strict=True):
        parts: list[tuple[np.ndarray, ...]] = []
        for (reference_rows, targets), (rows, _) in zip(blocks(theirs, ids), blocks(ours, ids), strict=True):
            reference, own = log_softmax(reference_rows), log_softmax(rows)  # (rows, vocab)
            each = np.arange(len(targets))
            divergence = np.sum(np.exp(reference) * (reference - own), axis=-1, dtype=np.float64)
            parts.append(
                (
                    targets,
                    -reference[each, targets].astype(np.float64),
                    -own[each, targets].astype(np.float64),
                    divergence,
                    reference.argmax(-1),
                    own.argmax(-1),
                )
            )
        yield Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def compare(
    reference_logits: Iterator[np.ndarray],
    logits: Iterator[np.ndarray],
    windows: np.ndarray,
) -> Comparison:
    """Both models' perplexities, and how far apart their predictions are, window by window.

    reference_logits and logits: float32 (window, vocab) for each of ``windows``.
    """
    nll = reference_nll = divergence = 0.0
    same = 0
    for one in predictions(reference_logits, logits, windows):
        reference_nll += float(one.reference_nll.sum())
        nll += float(one.nll.sum())
        divergence += float(one.divergence.sum())
        same += int((one.reference_top == one.top).sum())
    tokens = scored_tokens(windows)
    return Comparison(
        perplexity=Perplexity(nll / tokens, tokens).perplexity,
        reference_perplexity=Perplexity(reference_nll / tokens, tokens).perplexity,
        divergence=divergence / tokens,
        agreement=same / tokens,
        tokens=tokens,
    )


def scored_tokens(windows: np.ndarray) -> int:
    """The first token of each window is given, the others are predicted."""
    return windows.size - len(windows)


def blocks(logits: np.ndarray, ids: np.ndarray, rows: int = 64) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits (rows, vocab) with the tokens (rows,) they predict, few rows at a time to bound memory."""
    for start in range(0, len(ids) - 1, rows):
        stop = min(start + rows, len(ids) - 1)
        yield logits[start:stop], ids[start + 1 : stop + 1]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float32, the maximum taken out first. (rows, vocab) to (rows, vocab)."""
    import numpy as np

    shifted = logits.astype(np.float32)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def negative_log_likelihood(log_probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Sum of -log p(target), in nats. log_probabilities: (rows, vocab); targets: int (rows,)."""
    import numpy as np

    chosen = log_probabilities[np.arange(len(targets)), targets]
    return -float(chosen.sum(dtype=np.float64))


def load_causal_lm(model_dir: Path, dtype: torch.dtype | None = None) -> Any:
    """A transformers causal language model, in float32 unless said and ready to predict; never runs its own code.

    Attention is spelt out where its scores are capped (Gemma 2): torch's fused attention knows no cap, and transformers
    leaves it out there without a word. Raises InvalidInput naming a tensor that is missing, misshapen or left over.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # everlearn shows its own
    config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True)
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    model, info = AutoModelForCausalLM.from_pretrained(
        model_dir,
        attn_implementation="eager" if capped else None,
        dtype=dtype or torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused by name
    )
    refuse_differences(info)
    return model.eval()


def torch_logits(model: Any, windows: np.ndarray) -> Iterator[np.ndarray]:
    """Logits of each window, float32 (window, vocab), from a transformers causal language model."""
    import torch

    for ids in windows:
        with torch.inference_mode():
            logits = model(
                input_ids=torch.from_numpy(ids)[None], use_cache=False
            ).logits  # (1, window, vocab)
        yield logits[0].numpy()


def onnx_logits(model_dir: Path, windows: np.ndarray, graph: bytes | None = None) -> Iterator[np.ndarray]:
    """Logits of each window, float32 (window, vocab), from a decoder in the ONNX GenAI layout.

    The cache inputs are empty: every window is one prefill. ``graph``: to run instead of the directory's own, with the
    weights that lie there.
    """
    import numpy as np
    import onnxruntime

    decoder = json.loads((model_dir / "genai_config.json").read_text())["model"]["decoder"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    make_exact(options)
    options.enable_cpu_mem_arena = False  # which grows by doubling, and keeps what it has
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model_dir))
    session = onnxruntime.InferenceSession(
        graph or str(model_dir / decoder["filename"]), options, providers=["CPUExecutionProvider"]
    )
    specs = session.get_inputs()
    for ids in windows:
        feeds = {spec.name: _prefill_input(spec, ids, decoder) for spec in specs}
        (logits,) = session.run(["logits"], feeds)  # (1, window, vocab)
        yield np.asarray(logits[0], dtype=np.float32)


def _prefill_input(spec: Any, ids: np.ndarray, decoder: dict[str, Any]) -> np.ndarray:
    import numpy as np

    if spec.name == "input_ids":
        return ids[None]
    if spec.name == "attention_mask":
        return np.ones((1, len(ids)), dtype=np.int64)
    if spec.name == "position_ids":
        return np.arange(len(ids), dtype=np.int64)[None]
    if spec.name.startswith("past_key_values."):
        dtype = {"tensor(float16)": np.float16, "tensor(int8)": np.int8}.get(spec.type, np.float32)
        return np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), dtype=dtype)
    raise InvalidInput(f"the decoder asks for an input that is not known here: {spec.name}")
