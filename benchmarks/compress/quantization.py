"""What each compression costs and weighs, beside each other: ``python -m benchmarks.compress.quantization MODEL_DIR --work FOLDER``.

Every row is made of the same weights, measured on the same texts (``benchmarks.texts``), run on the engine that serves
it, and asked the same question. llama.cpp's formats are made by its own quantizer; their quality is that of the
weights they stand for. A row that is in FOLDER already is not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.compress.llamacpp_quantize import encoder
from benchmarks.texts import held
from compress.export import build_export
from compress.measure.compare import keep_logits, logits_of, speed_of
from compress.measure.quality import Quality, qualities, windows_of, word_starts
from compress.parent_files import keep_tokenizer
from compress.recipe import CompressRecipe
from compress.targets.gguf import write_gguf
from everlearn.errors import EverlearnError
from everlearn.progress import Progress, shown
from train.models.load import load_causal_lm

TOKENS = 2048
"""Of each text."""
QUESTION = "What is the capital of France?"
ROUNDS, NEW_TOKENS, STREAMS = 3, 48, 8

RECIPES = {
    "W8A8": CompressRecipe(to="w8a8"),
    "W4A16 rtn": CompressRecipe(to="w4a16", weights="rtn"),
    "W4A16 gptq": CompressRecipe(to="w4a16", weights="gptq"),
    "W4A16 awq": CompressRecipe(to="w4a16", weights="awq"),
    "ONNX int8": CompressRecipe(to="int8-onnx"),
    "ONNX int4 rtn, head 4": CompressRecipe(to="int4-onnx", head_bits=4),
    "ONNX int4 rtn": CompressRecipe(to="int4-onnx"),
    "ONNX int4 gptq, wide 0": CompressRecipe(to="int4-onnx", weights="gptq", high_precision_fraction=0),
    "ONNX int4 gptq, wide 0.1": CompressRecipe(to="int4-onnx", weights="gptq", high_precision_fraction=0.1),
    "ONNX int4 gptq, wide 0.2": CompressRecipe(to="int4-onnx", weights="gptq", high_precision_fraction=0.2),
}
LLAMACPP = ("Q4_0", "Q4_K_M", "Q8_0")


def rows(model_dir: Path) -> dict[str, Callable[[Path, Progress], dict[str, Any]]]:
    """How each row is made in a folder; what is returned says where its model is, its format and its bytes."""
    made: dict[str, Callable[[Path, Progress], dict[str, Any]]] = {
        "fp32": lambda folder, _: written(model_dir, folder, "float32"),
        "bf16": lambda folder, _: written(model_dir, folder, "bfloat16"),
    }
    for name, recipe in RECIPES.items():
        made[name] = lambda folder, progress, recipe=recipe: compressed(model_dir, folder, recipe, progress)
    for kind in LLAMACPP:
        made[f"llama.cpp {kind}"] = lambda folder, progress, kind=kind: llamacpp(
            model_dir, folder, kind, progress
        )
    return made


def written(model_dir: Path, folder: Path, dtype: str) -> dict[str, Any]:
    """The same weights in another type."""
    import torch

    model = load_causal_lm(model_dir)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    keep_tokenizer(model_dir, folder)
    return {"directory": str(folder), "format": "safetensors", "size": size_of(folder)}


def compressed(model_dir: Path, folder: Path, recipe: CompressRecipe, progress: Progress) -> dict[str, Any]:
    """By a recipe of everlearn."""
    build_export(model_dir, folder, "generate", recipe, progress)
    format = "onnx-genai" if recipe.to.endswith("onnx") else "compressed-tensors"
    return {"directory": str(folder), "format": format, "size": size_of(folder)}


def llamacpp(model_dir: Path, folder: Path, kind: str, progress: Progress) -> dict[str, Any]:
    """A GGUF file, and what its weights stand for as a Hugging Face directory."""
    from everlearn.importing.gguf_reader import convert

    layers = json.loads((model_dir / "config.json").read_text())["num_hidden_layers"]
    write_gguf(model_dir, file := folder / "model.gguf", encoder(kind, layers), progress)
    (weights := folder / "weights").mkdir()
    convert({"file": str(file), "directory": str(weights)}, progress)
    return {"directory": str(weights), "format": "gguf", "size": file.stat().st_size, "file": str(file)}


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="where rows and figures are kept")
    parser.add_argument("--only", help="rows whose name has this")
    chosen = parser.parse_args()
    model_dir, work = chosen.model_dir.resolve(), chosen.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    windows = windows_of(model_dir / "tokenizer.json", held(), TOKENS)
    whole = np.concatenate(list(windows.values()))
    reference = reference_logits(model_dir, whole, work / "reference.npy")
    starts = word_starts(model_dir / "tokenizer.json")
    for at, (name, make) in enumerate(rows(model_dir).items()):
        figures = work / f"{at:02}.json"
        if not figures.exists() and (not chosen.only or chosen.only in name):
            folder = work / f"{at:02}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            with shown() as progress:
                try:
                    row = make(folder, progress)
                except EverlearnError as error:
                    print(f"| {name} | {error.message} |", flush=True)
                    continue
                form = row["format"].replace("gguf", "safetensors")
                model = {"directory": row["directory"], "format": form}
                row["texts"] = measured(model, windows, reference, starts)
                row |= served(row, progress)
            figures.write_text(json.dumps({"name": name, **row}, indent=2))
            shutil.rmtree(folder)
    print_rows([json.loads(file.read_text()) for file in sorted(work.glob("[0-9][0-9].json"))])


def reference_logits(model_dir: Path, windows: np.ndarray, file: Path) -> np.ndarray:
    """The parent's, in float32, kept: (windows, window, vocab)."""
    if not file.exists():
        logits = logits_of({"directory": str(model_dir), "format": "safetensors"}, windows)
        keep_logits(logits, len(windows), file.with_suffix(".partial"))
        file.with_suffix(".partial").replace(file)
    return np.load(file, mmap_mode="r")


def measured(
    model: dict[str, str], windows: dict[str, np.ndarray], reference: np.ndarray, starts: Any
) -> dict[str, Any]:
    """Quality on each text."""
    logits = logits_of(model, np.concatenate(list(windows.values())))
    found = qualities(reference, logits, windows, starts)
    return {name: asdict(one) for name, one in found.items()}


def served(row: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Tokens a second, and the answer to the question."""
    if row["format"] != "gguf":
        figures = speed_of(Path(row["directory"]), row["format"], progress)
        return {**figures, "answer": figures.pop("answers")[0]}
    threads = str(os.cpu_count())
    command = [sys.executable, "-m", "benchmarks.serve.llamacpp_server", row["file"], "--threads", threads]
    with subprocess.Popen(
        [*command, "--slots", str(STREAMS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout and server.stdin
        url = next(line for line in server.stdout if line.startswith("listening")).split()[1]
        ask = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 32}
        answer = httpx.post(f"{url}/v1/chat/completions", json=ask, timeout=300).json()
        figures = {
            "engine": "llama.cpp (xllamacpp)",
            "decode_tokens_per_s": max(streams(url, 1) for _ in range(ROUNDS)),
            "decode_8_tokens_per_s": max(streams(url, STREAMS) for _ in range(ROUNDS)),
        }
        server.stdin.close()
    return {**figures, "answer": answer["choices"][0]["message"]["content"]}


def streams(url: str, count: int) -> float:
    """Tokens a second of so many streams together, as the server reports of each."""
    from concurrent.futures import ThreadPoolExecutor

    def one(at: int) -> float:
        prompt = [1000 + (token * 53 + at * 7) % 5000 for token in range(16)]
        body = {"prompt": prompt, "n_predict": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
        said = httpx.post(f"{url}/completion", json=body | {"cache_prompt": False}, timeout=300).json()
        return said["timings"]["predicted_per_second"]

    with ThreadPoolExecutor(count) as pool:
        return round(sum(pool.map(one, range(count))), 1)


def print_rows(found: list[dict[str, Any]]) -> None:
    """The table, in Markdown."""
    texts = list(found[0]["texts"]) if found else []
    names = ["made", "MB", *texts, "ratio", "KL, nats", "same top", "words right", "flips"]
    names += ["tok/s", "8 streams", "runs in", "answer"]
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for row in found:
        parts = [Quality(**one) for one in row["texts"].values()]
        words = sum(one.words for one in parts)
        ratio = math.exp(sum(one.nll - one.reference_nll for one in parts) / len(parts))
        cells = [
            row["name"],
            f"{row['size'] / 1e6:.1f}",
            *(f"{one.perplexity:.2f}" for one in parts),
            f"{ratio:.4f}",
            f"{sum(one.divergence for one in parts) / len(parts):.4f}",
            f"{sum(one.agreement for one in parts) / len(parts):.1%}",
            f"{sum(one.right for one in parts) / words:.2%}",
            f"{sum(one.flips for one in parts) / words:.2%}",
            f"{row['decode_tokens_per_s']:.0f}",
            f"{row['decode_8_tokens_per_s']:.0f}",
            row["engine"].removeprefix("onnxruntime-"),
            " ".join(row["answer"].split())[:48],
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
