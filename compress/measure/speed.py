"""Speed of a bundle's decoding, and its answers, on the library that runs its format. Run as a child process.

ONNX runs in onnxruntime-genai's bare loop, the others in vLLM, or in plain torch where vLLM is not installed.
"""

# pyright: basic
# The engines tell strict rules little of their types.

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from everlearn.memory import peak_bytes
from everlearn.processes.child import answer
from everlearn.progress import Progress

ROWS = 8
PREFILL_TOKENS = 256
NEW_TOKENS = 48
ROUNDS = 3

Run = Callable[[list[list[int]], int], tuple[float, float, list[list[int]]]]
"""Prompts of equal length, and how many new tokens each → seconds to the first of them, seconds for the rest, tokens."""


def measure(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """request: ``directory``, ``format``, ``threads``, ``prompts`` (texts), ``new_tokens``. Returns tokens/s.

    ``prefill`` of 256 tokens, ``decode`` of one row, ``decode_8`` of eight together; the best of three rounds. With
    ``peak_memory_bytes`` of this process, and the greedy ``answers``.
    """
    from tokenizers import Tokenizer

    directory = Path(request["directory"])
    progress("loading the engine", None)
    name, run = engine(directory, request["format"], request["threads"])
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    answers: list[str] = []
    for prompt in request["prompts"]:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        answers.append(tokenizer.decode(run([ids], request["new_tokens"])[2][0]))
    draw = random.Random(0)
    long, short = (
        [[draw.randrange(tokenizer.get_vocab_size()) for _ in range(tokens)] for _ in range(rows)]
        for rows, tokens in ((ROUNDS, PREFILL_TOKENS), (ROWS, 16))
    )
    figures = {"prefill": 0.0, "decode": 0.0, "decode_8": 0.0}
    for done in range(ROUNDS):
        progress("decoding", done / ROUNDS)
        first, _, _ = run([long[done]], 1)
        figures["prefill"] = max(figures["prefill"], PREFILL_TOKENS / first)
        for key, rows in (("decode", 1), ("decode_8", ROWS)):
            _, rest, tokens = run(short[:rows], NEW_TOKENS)
            figures[key] = max(figures[key], sum(len(one) - 1 for one in tokens) / rest)
    rounded = {f"{key}_tokens_per_s": round(value, 1) for key, value in figures.items()}
    return {"engine": name, **rounded, "peak_memory_bytes": peak_bytes(), "answers": answers}


def engine(directory: Path, format: str, threads: int) -> tuple[str, Run]:
    """What runs a bundle of this format here: its name and version, and how to call it."""
    if format == "onnx-genai":
        return f"onnxruntime-genai {version('onnxruntime-genai')}", genai(directory, threads)
    if find_spec("vllm"):
        from vllm._version import __version__

        return f"vllm {__version__}", vllm(directory, threads)
    return f"torch {version('torch')}", torch_loop(directory, threads)


def genai(directory: Path, threads: int) -> Run:
    """onnxruntime-genai's bare loop: a static batch, greedy."""
    import numpy as np
    import onnxruntime_genai as og

    config = og.Config(str(directory))
    session = {"intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)

    def run(prompts: list[list[int]], new_tokens: int) -> tuple[float, float, list[list[int]]]:
        params = og.GeneratorParams(model)
        length = len(prompts[0]) + new_tokens
        params.set_search_options(
            do_sample=False, batch_size=len(prompts), max_length=length, min_length=length
        )
        generator = og.Generator(model, params)
        began = time.perf_counter()
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            generator.generate_next_token()
        rest = time.perf_counter() - first
        found = [list(generator.get_sequence(row))[len(prompts[0]) :] for row in range(len(prompts))]
        return first - began, rest, [[int(one) for one in row] for row in found]

    return run


def vllm(directory: Path, threads: int) -> Run:
    """vLLM in this process, bfloat16, no compiled graphs: what it multiplies is the same, and it starts in seconds."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_PLUGINS": "everlearn_int4",
    }
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(
        model=str(directory),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=ROWS,
        enable_prefix_caching=False,
        seed=0,
    )

    def run(prompts: list[list[int]], new_tokens: int) -> tuple[float, float, list[list[int]]]:
        given = [TokensPrompt(prompt_token_ids=one) for one in prompts]

        def timed(tokens: int) -> tuple[float, Any]:
            sampling = SamplingParams(temperature=0, max_tokens=tokens, min_tokens=tokens, detokenize=False)
            began = time.perf_counter()
            found = llm.generate(given, sampling, use_tqdm=False)
            return time.perf_counter() - began, found

        first, found = timed(1)
        if new_tokens == 1:
            return first, 0.0, [list(one.outputs[0].token_ids) for one in found]
        whole, found = timed(new_tokens)
        return first, whole - first, [list(one.outputs[0].token_ids) for one in found]

    return run


def torch_loop(directory: Path, threads: int) -> Run:
    """transformers' own generation in float32."""
    import torch

    from train.models.load import load_causal_lm

    torch.set_num_threads(threads)
    model = load_causal_lm(directory)

    def run(prompts: list[list[int]], new_tokens: int) -> tuple[float, float, list[list[int]]]:
        ids = torch.tensor(prompts)

        def timed(tokens: int) -> tuple[float, Any]:
            began = time.perf_counter()
            with torch.inference_mode():
                found = model.generate(
                    ids, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0
                )
            return time.perf_counter() - began, found[:, ids.shape[1] :].tolist()

        first, found = timed(1)
        if new_tokens == 1:
            return first, 0.0, found
        whole, found = timed(new_tokens)
        return first, whole - first, found

    return run


if __name__ == "__main__":
    answer(measure)
