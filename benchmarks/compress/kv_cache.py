"""Keys and values at 8 bits beside float32, with the same weights: ``python -m benchmarks.compress.kv_cache MODEL_DIR``.

Quality: the held texts a token at a time, as an answer is written, so that all that is past is read from the cache.
Speed: a step of one row and of several behind a long past; the best of some.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.texts import held
from compress.export import build_export
from compress.measure.quality import windows_of
from compress.recipe import CompressRecipe
from everlearn.progress import shown
from serve.engines.onnx.decoding.decoder import Decoder
from train.evaluate.comparison import compare

TOKENS = 2048
"""Of each text, in windows that begin anew."""
ROWS, PASTS, STEPS = 8, (256, 2048, 7168), 12


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--to", default="int8-onnx", choices=["int8-onnx", "int4-onnx"])
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    windows = windows_of(chosen.model_dir / "tokenizer.json", held(), TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        bundles: dict[str, Path] = {}
        for kept in ("float32", "int8"):
            (directory := Path(folder) / kept).mkdir()
            with shown() as progress:
                recipe = CompressRecipe.model_validate({"to": chosen.to, "kv_cache": kept})
                build_export(chosen.model_dir, directory, "generate", recipe, progress)
            bundles[kept] = directory
        quality(bundles, np.concatenate(list(windows.values())), chosen.threads)
        speed(bundles, chosen.threads)


def quality(bundles: dict[str, Path], windows: np.ndarray, threads: int) -> None:
    """Perplexity with each, and how far the second's predictions are from the first's; windows: int64 (rows, window)."""
    decoders = {
        kept: Decoder(bundle, rows=1, threads=threads, context=windows.shape[1])
        for kept, bundle in bundles.items()
    }
    reference, logits = (through_cache(decoder, windows) for decoder in decoders.values())
    found = compare(reference, logits, windows)
    print(
        f"{found.tokens} tokens, each read behind its past from the cache: perplexity {found.perplexity:.3f} instead of"
        f" {found.reference_perplexity:.3f}, ratio {found.perplexity / found.reference_perplexity:.5f},"
        f" KL {found.divergence:.6f} nats a token, the same most likely token {found.agreement:.1%}"
    )
    for kept, decoder in decoders.items():
        print(f"{kept}: {decoder.kv_bytes_per_token / 1024:.1f} KiB a token")


def through_cache(decoder: Decoder, windows: np.ndarray) -> Iterator[np.ndarray]:
    """Logits of each window, float32 (window, vocab), from one token after the other."""
    for ids in windows:
        steps = (decoder.decode(ids[at : at + 1], np.array([at + 1])) for at in range(len(ids)))
        yield np.concatenate(list(steps))


def speed(bundles: dict[str, Path], threads: int) -> None:
    """Milliseconds of a step; the cache is full of random numbers: attention takes as long whatever it reads."""
    draw = np.random.default_rng(0)
    print(
        f"| ms a step, {threads} threads | "
        + " | ".join(f"{rows} x {past}" for rows in (1, ROWS) for past in PASTS)
        + " |"
    )
    print("|---" * (1 + 2 * len(PASTS)) + "|")
    for kept, bundle in bundles.items():
        decoder = Decoder(bundle, rows=ROWS, threads=threads, context=max(PASTS) + STEPS)
        for cache in decoder.caches:
            numbers = draw.standard_normal(cache.array.shape, np.float32)
            cache.array[:] = numbers if decoder.element is np.float32 else numbers * 32
        cells: list[str] = []
        for rows in (1, ROWS):
            for past in PASTS:
                best = math.inf
                for step in range(STEPS):
                    tokens, lengths = np.full(rows, 100 + step), np.full(rows, past + step + 1)
                    began = time.perf_counter()
                    decoder.decode(tokens, lengths)
                    best = min(best, time.perf_counter() - began)
                cells.append(f"{best * 1000:.1f}")
        print(f"| {kept} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
