"""A sentence encoder in INT8 beside PyTorch: ``python -m benchmarks.encoder MODEL_DIR``.

The task is the inverse cloze task (arXiv 1906.00300) on real text: of all second halves, which one goes on from this
first half? Accuracy is the share whose nearest embedding is the right one. Speed: passages in batches, as they are
indexed, and ten words at a time, as questions come; the same texts, the same threads, in turn, the best of some rounds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.texts import held, readable
from compress.export import build
from compress.export_encoder import load_encoder
from compress.recipe import CompressRecipe
from everlearn.progress import shown

WORDS = 60
"""Of a passage; its halves have 30 each."""
BATCH, ROUNDS, TIMED_BATCHES = 32, 3, 12
QUESTION_WORDS, QUESTIONS = 10, 300

Encode = Callable[[list[str]], np.ndarray]


def passages() -> list[tuple[str, str]]:
    """First and second halves of passages, from texts that come with everlearn and Python."""
    kinds = readable()
    texts = ["\n".join((held()[kind], *kinds.get(kind, []))) for kind in ("jargon", "scripture", "python")]
    found: list[tuple[str, str]] = []
    for text in texts:
        words = text.split()[: 500 * WORDS]
        for start in range(0, len(words) - WORDS, WORDS):
            half = start + WORDS // 2
            found.append((" ".join(words[start:half]), " ".join(words[half : start + WORDS])))
    return found


def nearest(encode: Encode, pairs: list[tuple[str, str]]) -> np.ndarray:
    """For each first half the number of the second half nearest to it; its own is the right one."""
    firsts, seconds = (embedded(encode, [pair[at] for pair in pairs]) for at in (0, 1))
    return (firsts @ seconds.T).argmax(1)


def embedded(encode: Encode, texts: list[str], batch: int = BATCH) -> np.ndarray:
    """float32 (texts, dim)."""
    return np.concatenate([encode(texts[at : at + batch]) for at in range(0, len(texts), batch)])


def onnx_encoder(directory: Path, threads: int) -> Encode:
    """As ``serve`` runs it: onnxruntime, texts padded to the longest of their batch."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = ready(Tokenizer.from_file(str(directory / "tokenizer.json")), directory)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    names = {one.name for one in session.get_inputs()}

    def encode(texts: list[str]) -> np.ndarray:
        feeds = {name: value for name, value in inputs(tokenizer, texts).items() if name in names}
        return np.asarray(session.run(["sentence_embedding"], feeds)[0])

    return encode


def torch_encoder(model_dir: Path, exported: Path, threads: int) -> Encode:
    """The same in PyTorch, float32."""
    import torch
    from tokenizers import Tokenizer

    torch.set_num_threads(threads)
    encoder, names = load_encoder(model_dir)
    tokenizer = ready(Tokenizer.from_file(str(exported / "tokenizer.json")), exported)

    def encode(texts: list[str]) -> np.ndarray:
        given = inputs(tokenizer, texts)
        with torch.inference_mode():
            return encoder(*(torch.from_numpy(given[name]) for name in names)).numpy()

    return encode


def ready(tokenizer: Any, directory: Path) -> Any:
    """With the truncation and padding of the exported encoder."""
    tokenizer.enable_truncation(json.loads((directory / "config.json").read_text())["max_length"])
    tokenizer.enable_padding()
    return tokenizer


def inputs(tokenizer: Any, texts: list[str]) -> dict[str, np.ndarray]:
    """int64 (texts, seq) each."""
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([one.ids for one in encoded]),
        "attention_mask": np.array([one.attention_mask for one in encoded]),
        "token_type_ids": np.array([one.type_ids for one in encoded]),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    pairs = passages()
    with tempfile.TemporaryDirectory() as folder, shown() as progress:
        made: dict[str, tuple[Encode, int]] = {}
        for to in ("fp32-onnx", "int8-onnx"):
            (directory := Path(folder) / to).mkdir()
            build(chosen.model_dir, directory, "embed", CompressRecipe(to=to), progress)  # type: ignore[arg-type]
            size = sum(file.stat().st_size for file in directory.iterdir())
            made[to] = (onnx_encoder(directory, chosen.threads), size)
        weights = sum(file.stat().st_size for file in chosen.model_dir.glob("*.safetensors"))
        encode = torch_encoder(chosen.model_dir, Path(folder) / "fp32-onnx", chosen.threads)
        made = {"PyTorch, fp32": (encode, weights), **made}
        picked = {name: nearest(encode, pairs) for name, (encode, _) in made.items()}
        right = {name: float((one == np.arange(len(pairs))).mean()) for name, one in picked.items()}
        texts = [first + " " + second for first, second in pairs[: BATCH * TIMED_BATCHES]]
        questions = [" ".join(first.split()[:QUESTION_WORDS]) for first, _ in pairs[:QUESTIONS]]
        best = {name: [float("inf")] * 2 for name in made}
        for _ in range(ROUNDS):
            for name, (encode, _) in made.items():
                for at, (asked, batch) in enumerate(((texts, BATCH), (questions, 1))):
                    began = time.perf_counter()
                    embedded(encode, asked, batch)
                    best[name][at] = min(best[name][at], time.perf_counter() - began)
    first = next(iter(made))
    print(
        f"{len(pairs)} passages of {WORDS} words; speed on {len(texts)} of them, batches of {BATCH}, "
        f"and on {len(questions)} questions of {QUESTION_WORDS} words, one at a time"
    )
    print(
        "| | MB | of fp32 | accuracy | of fp32's | the same pick | passages/s | times PyTorch | ms a question "
        "| times PyTorch |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for name, (_, size) in made.items():
        in_batches, alone = best[name]
        print(
            f"| {name} | {size / 1e6:.1f} | {size / made[first][1]:.1%} | {right[name]:.4f} "
            f"| {right[name] / right[first]:.2%} | {(picked[name] == picked[first]).mean():.1%} "
            f"| {len(texts) / in_batches:.0f} | {best[first][0] / in_batches:.2f} "
            f"| {1000 * alone / len(questions):.2f} | {best[first][1] / alone:.2f} |"
        )


if __name__ == "__main__":
    main()
