"""How much memory it takes to build INT4 ONNX of a model: ``python -m benchmarks.compress.memory WORK --limit 2GB``.

A Llama of random bfloat16 weights whose float32 would be ``--times`` the limit is written to WORK, layer after layer, and
built in a process of its own. With ``--cgroup DIR``, a folder of a memory cgroup that may be written, the kernel holds
that process to the limit, pages of files included; without, the peak of its own pages is printed, and that is all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

HELD = 1024
"""Tokens that it is measured on."""
HIDDEN, FFN, HEADS, KV_HEADS, VOCAB = 2048, 8192, 32, 8, 49152
LAYER = HIDDEN * (2 * HIDDEN + 2 * KV_HEADS * HIDDEN // HEADS + 3 * FFN)
CHILD = "import json, sys; from benchmarks.compress import memory; memory.{}(json.loads(sys.argv[1]), sys.argv[2])"
UNITS = {"MB": 10**6, "GB": 10**9}


def main(
    work: Annotated[
        Path, typer.Argument(help="A folder on a disk with room for the model and what is made of it.")
    ],
    tokenizer: Annotated[
        Path, typer.Option(help="A folder with the tokenizer's files, of at most 49,152 tokens.")
    ],
    limit: Annotated[str, typer.Option(help="Memory, as 2GB or 800MB.")] = "2GB",
    times: Annotated[float, typer.Option(help="The model's size in float32, over the limit.")] = 3,
    cgroup: Annotated[Path | None, typer.Option(help="A memory cgroup's folder.")] = None,
    weights: Annotated[str, typer.Option(help="rtn or gptq.")] = "rtn",
    tokens: Annotated[int, typer.Option(help="Of the calibration set.")] = 2048,
) -> None:
    """Prints the model's size, the limit, the peaks and the seconds."""
    said = re.fullmatch(r"(\d+(?:\.\d+)?)(MB|GB)", limit)
    if not said:
        raise typer.BadParameter("a limit is written as 2GB or 800MB")
    allowed = int(float(said[1]) * UNITS[said[2]])
    layers = max(1, int(times * allowed / 4 - VOCAB * HIDDEN) // LAYER)
    model_dir = work / f"random-{layers}"
    if not (model_dir / "model.safetensors.index.json").exists():
        write_model(model_dir, layers, tokenizer)
    forget(model_dir)
    if cgroup:
        set_limit(cgroup, allowed)
    request = {"model_dir": str(model_dir), "work": str(work), "weights": weights, "tokens": tokens}
    said_lines, codes = list[Any](), list[int]()
    for part in ("build_in", "measure_in"):
        child = subprocess.run(
            [sys.executable, "-c", CHILD.format(part), json.dumps(request), str(cgroup or "")],
            stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        said_lines += [json.loads(line[5:]) for line in child.stdout.splitlines() if line.startswith("STEP ")]
        codes.append(child.returncode)
        forget(work / "made")
    parameters = VOCAB * HIDDEN + layers * LAYER
    print(
        f"{parameters / 1e9:.2f} billion weights, {weights}: {4 * parameters / 1e9:.2f} GB in float32, ",
        end="",
    )
    print(
        f"{2 * parameters / 1e9:.2f} on disk; memory {allowed / 1e9:.2f} GB{'' if cgroup else ' (not held to it)'}"
    )
    for name, peak, seconds in said_lines:
        print(f"  {name:<28} {peak / 1e6:7.0f} MB of its own {seconds:7.0f} s")
    print(f"  ended with {codes}; made {size_of(work / 'made') / 1e9:.2f} GB")


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def write_model(model_dir: Path, layers: int, tokenizer: Path) -> None:
    """A Llama of random weights, one layer in memory at a time, in files of one layer each."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    model_dir.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, tie_word_embeddings=True, dtype="bfloat16",
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(model_dir)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copyfile(file, model_dir / file.name)
    torch.manual_seed(0)
    kv = KV_HEADS * HIDDEN // HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (kv, HIDDEN), "self_attn.v_proj": (kv, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN),
        "mlp.down_proj": (HIDDEN, FFN), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
    }  # fmt: skip
    where: dict[str, str] = {}

    def keep(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, model_dir / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, name))

    def made(shape: tuple[int, ...]) -> torch.Tensor:
        random = torch.randn(shape, dtype=torch.float32) * 0.02 if len(shape) > 1 else torch.ones(shape)
        return random.to(torch.bfloat16)

    keep(
        "model-embedding.safetensors",
        {"model.embed_tokens.weight": made((VOCAB, HIDDEN)), "model.norm.weight": made((HIDDEN,))},
    )
    for layer in range(layers):
        tensors = {f"model.layers.{layer}.{name}.weight": made(shape) for name, shape in shapes.items()}
        keep(f"model-{layer:03}.safetensors", tensors)
    index = {"metadata": {}, "weight_map": where}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))


def forget(folder: Path) -> None:
    """Takes a folder's files out of memory, where another process's account may hold their pages."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def set_limit(cgroup: Path, allowed: int) -> None:
    """Of a cgroup of either version."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (cgroup / name).exists():
            (cgroup / name).write_text(str(allowed))
            return
    raise SystemExit(f"{cgroup} is no memory cgroup")


def build_in(request: dict[str, Any], cgroup: str) -> None:
    """The first child: builds, and prints what each step took."""
    enter(cgroup)
    from compress.export import decoder_request
    from compress.recipe import Calibration, CompressRecipe
    from compress.targets.onnx_decoder import build_onnx_decoder

    work, model_dir = Path(request["work"]), Path(request["model_dir"])
    recipe = CompressRecipe(
        weights=request["weights"],
        high_precision_fraction=0,
        calibration=Calibration(tokens=request["tokens"]),
    )
    made = work / "made"
    made.mkdir(exist_ok=True)
    asked = decoder_request(model_dir, made, recipe, work / "scratch") | {
        "cache_dir": str(work / "cache"), "tokens": HELD, "reference": str(work / "reference.npy"),
        "carried": str(work / "carried.npy"), "far": str(work / "far.npz"),
    }  # fmt: skip
    step = watched()
    build_onnx_decoder(asked, step)
    step("end")


def measure_in(request: dict[str, Any], cgroup: str) -> None:
    """The second child: measures what the first one made."""
    enter(cgroup)
    step = watched()
    from compress.measure.parent_divergence import measure_export

    work = Path(request["work"])
    asked = {
        "parent": request["model_dir"], "export": str(work / "made"), "tokens": HELD,
        "reference": str(work / "reference.npy"), "carried": str(work / "carried.npy"),
        "far": str(work / "far.npz"),
    }  # fmt: skip
    measure_export(asked, step)
    step("end")


def enter(cgroup: str) -> None:
    if cgroup:
        Path(cgroup, "cgroup.procs").write_text(str(os.getpid()))


def watched() -> Callable[..., None]:
    """To be called as each step begins: prints what the one before it took."""
    at, peak, began = "start", [0], [time.monotonic()]

    def watch() -> None:
        while True:
            time.sleep(0.02)
            peak[0] = max(peak[0], own_bytes())

    threading.Thread(target=watch, daemon=True).start()

    def step(name: str, _done: float | None = None) -> None:
        nonlocal at
        if at != name:
            print("STEP", json.dumps([at, peak[0], time.monotonic() - began[0]]), flush=True)
            at, peak[0], began[0] = name, own_bytes(), time.monotonic()

    return step


def own_bytes() -> int:
    """Pages that no file backs, of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


if __name__ == "__main__":
    typer.run(main)
