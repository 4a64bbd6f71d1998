"""Self-generated replay (arXiv 2605.26097): samples of what a model knew before its first job.

Nobody has the data the base model was trained on, but the model can draw from its own distribution. As the
authors do it: plain sampling at temperature 1 from nothing but the start token, on past any end of text, so that
one sample holds documents as the model saw them packed; every token is a target.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from continual.recipe import Generation
from everlearn.chat.stops import stops_of
from everlearn.errors import Unsupported
from everlearn.progress import Progress, silent
from train.data.store import Example
from train.models.load import load_causal_lm

DOCUMENT_START = "<|endoftext|>"
"""What many models' pretraining put between documents, where a chat model's start token opens a turn instead."""


def generate_examples(
    model_dir: Path, options: Generation, seed: int, progress: Progress = silent
) -> list[Example]:
    """Samples of ``options.sample_tokens`` tokens each, ``options.tokens`` in all, half from each start token.

    Deterministic in the model, the options, the seed and torch's number of threads. Raises Unsupported where the
    model has no start token.
    """
    import torch

    model = load_causal_lm(model_dir)
    starts = start_tokens(model_dir, model.config)
    count = -(-options.tokens // options.sample_tokens)
    examples: list[Example] = []
    for first in range(0, count, options.batch):
        rows = min(options.batch, count - first)
        random = torch.Generator().manual_seed(seed * 1_000_003 + first)
        prompt = torch.tensor([starts[(first + row) % len(starts)] for row in range(rows)])
        for ids in _sample(model, prompt, options, random):
            examples.append(Example(ids, np.arange(len(ids)) > 0))
        progress("writing down what the model knows", min(1.0, (first + rows) / count))
    return examples


def start_tokens(model_dir: Path, config: Any) -> list[int]:
    """The ids a text may begin with: the model's start token, and the one between documents of pretraining."""
    from tokenizers import Tokenizer

    document = Tokenizer.from_file(str(model_dir / "tokenizer.json")).token_to_id(DOCUMENT_START)
    known = [config.bos_token_id, document]
    if known == [None, None]:
        known = [stops_of(model_dir).text_end]
    starts = list(dict.fromkeys(token for token in known if token is not None))
    if not starts:
        raise Unsupported("this model has no start token, so it cannot be sampled: set replay.base to 0")
    return starts


def _sample(model: Any, prompt: Any, options: Generation, random: Any) -> np.ndarray:
    """prompt: int64 (rows,), random: a torch.Generator. Returns ids: int32 (rows, sample_tokens)."""
    import torch

    drawn, cache = [prompt[:, None]], None
    with torch.inference_mode():
        for _ in range(options.sample_tokens - 1):
            made = model(input_ids=drawn[-1], past_key_values=cache, use_cache=True)
            cache = made.past_key_values
            chances = torch.softmax(made.logits[:, -1].float() / options.temperature, -1)  # (rows, vocab)
            drawn.append(torch.multinomial(chances, 1, generator=random))
    return torch.cat(drawn, 1).to(torch.int32).numpy()
