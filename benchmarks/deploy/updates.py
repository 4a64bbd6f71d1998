"""Lessons in sequence as updates of a device: `python -m benchmarks.deploy.updates --model DIR --folder EDGE --work DIR`.

Each lesson is a short fine-tuning of a real model on other real text. Its weights are rounded, with the parent's scales
and with fresh ones, into the edge folder that the model has (built once: the graph stays), published, and taken over
HTTP by a device that verifies them. Bytes are what the device asked for. Started again with the same `--work`, it goes on.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import cpu
from benchmarks.texts import readable
from compress.quantize.blocks import Quantized, round_to_nearest
from compress.quantize.matrices import packed
from compress.quantize.sensitivity import STACKS
from deploy.updates import publisher
from deploy.updates.device.probes import computed
from deploy.updates.device.store import Device, Followed, create
from deploy.updates.device.update import update
from deploy.updates.keys import Keys
from train.evaluate.held_out_text import held_out_text
from train.models.load import load_causal_lm

SCALES = ("parent", "fresh")
SEQUENCE = 128
EVERY = 20
"""Documents: of each kind every so many are one lesson's."""
CODES, HALVES = ".MatMul.weight.codes", ".MatMul.weight.scales.half"
Rounded = dict[str, list[Quantized]]
"""The matrices of each product of the graph, by its name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument(
        "--folder", type=Path, required=True, help="its edge folder, made by everlearn deploy edge"
    )
    parser.add_argument("--work", type=Path, required=True, help="a folder to work in")
    parser.add_argument("--lessons", type=int, default=20)
    parser.add_argument("--tune", choices=("lora", "full"), default="lora")
    parser.add_argument("--steps", type=int, default=8, help="of each lesson, 512 tokens each")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--compare", type=int, default=4, help="lessons with fresh scales too, and what rounding costs"
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = arguments.work / "lessons.jsonl"
    arguments.work.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    publisher.FROM = 1  # the device has the lesson before
    for lesson in range(len(done), arguments.lessons + 1):
        done.append(one_lesson(arguments, lesson))
        with results.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(json.dumps(done[-1]), file=sys.stderr, flush=True)
    print(table(done))


def one_lesson(arguments: Any, lesson: int) -> dict[str, Any]:
    """Teaches, rounds, publishes and updates; lesson 0 is the model as it was."""
    kept = arguments.work / "weights.pt"
    model = load_causal_lm(arguments.model, torch.float32)
    if kept.exists():
        model.load_state_dict(torch.load(kept, weights_only=True))
    before = {name: one.detach().clone() for name, one in model.named_parameters() if one.ndim == 2}
    said: dict[str, Any] = {"lesson": lesson}
    if lesson:
        started = time.monotonic()
        model, said["losses"] = taught(model, arguments, lesson)
        said["training_s"] = round(time.monotonic() - started, 1)
    after = {name: one.detach() for name, one in model.named_parameters() if one.ndim == 2}
    moved = sum(float((after[name] - one).square().sum()) for name, one in before.items())
    said["relative_change"] = math.sqrt(moved / sum(float(one.square().sum()) for one in before.values()))
    del before
    compared = lesson <= arguments.compare or lesson % 10 == 0
    logits = predicted(model, arguments.model) if compared else None
    manifest = json.loads((arguments.folder / "edge.json").read_bytes())
    for scales in SCALES if lesson <= arguments.compare else SCALES[:1]:
        first = arguments.work / "scales.pt"
        given = torch.load(first, weights_only=True) if scales == "parent" and first.exists() else {}
        rounded = rounded_matrices(after, manifest, given)
        if not first.exists():
            torch.save({name: [one.scales for one in all] for name, all in rounded.items()}, first)
        folder = write_folder(arguments, rounded, lesson, scales)
        said[scales] = ship(arguments.work / scales, folder)
        if logits is not None:
            said[scales] |= price(model, rounded, logits, arguments.model)
    torch.save(model.state_dict(), arguments.work / "next.pt")
    (arguments.work / "next.pt").replace(kept)
    return said


def taught(model: Any, arguments: Any, lesson: int) -> tuple[Any, list[float]]:
    """The model after the lesson, and the loss of each step."""
    ids = tokens_of("\n\n".join(texts(lesson)), arguments.model)
    rows = ids[: len(ids) // SEQUENCE * SEQUENCE].view(-1, SEQUENCE)
    tuned = model
    if arguments.tune == "lora":
        from peft import LoraConfig, get_peft_model

        tuned = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    trained = [one for one in tuned.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=arguments.lr, weight_decay=0.0)
    losses: list[float] = []
    picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(lesson))
    for step in range(arguments.steps):
        batch = rows[picked[torch.arange(4 * step, 4 * step + 4) % len(rows)]]
        with torch.autocast("cpu", torch.bfloat16):
            loss = tuned(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(float(loss.detach()), 3))
    return (tuned.merge_and_unload() if arguments.tune == "lora" else model), losses


def texts(lesson: int) -> list[str]:
    """Every so many of the documents: of each kind some in each lesson, and none in two."""
    documents = [one for kind in sorted(readable()) for one in readable()[kind]]
    return documents[lesson - 1 :: EVERY]


def tokens_of(text: str, model_dir: Path) -> torch.Tensor:
    from tokenizers import Tokenizer

    return torch.tensor(Tokenizer.from_file(str(model_dir / "tokenizer.json")).encode(text).ids)


def rounded_matrices(
    weights: dict[str, torch.Tensor], manifest: dict[str, Any], given: dict[str, list[torch.Tensor]]
) -> Rounded:
    """Every product's matrices, with the bits that the folder has; ``given``: the scales to keep."""
    made: Rounded = {}
    for name, size in spans(manifest, CODES).items():
        parts = [weights[one] for one in layers_of(name, weights)]
        bits = size["bytes"] * 8 // sum(one.numel() for one in parts)
        scales = given.get(name) or [None] * len(parts)
        made[name] = [round_to_nearest(one, bits, of) for one, of in zip(parts, scales, strict=True)]
    return made


def layers_of(name: str, weights: dict[str, torch.Tensor]) -> list[str]:
    folder, _, last = name.replace(".attn.", ".self_attn.").rpartition(".")
    names = [f"{folder}.{part}.weight".lstrip(".") for part in STACKS.get(last, (last,))]
    tied = ["model.embed_tokens.weight"] if last == "lm_head" and names[0] not in weights else names
    return [one if one in weights else f"model.{one}" for one in tied]


def spans(manifest: dict[str, Any], ending: str) -> dict[str, dict[str, Any]]:
    """Where the tensors lie whose names end so, by what comes before."""
    return {
        one["name"].removesuffix(ending): {**one, "part": part}
        for part, all in manifest["tensors"].items()
        for one in all
        if one["name"].endswith(ending)
    }


def write_folder(arguments: Any, rounded: Rounded, lesson: int, scales: str) -> Path:
    """The edge folder with these matrices, its hashes, and the logits that it computes."""
    folder = arguments.work / f"edge-{scales}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(arguments.folder, folder)
    manifest = json.loads((folder / "edge.json").read_bytes())
    for part in manifest["tensors"]:
        content = np.fromfile(folder / part, np.uint8)
        for ending, values in ((CODES, lambda one: packed(one)), (HALVES, lambda one: one.scales.half())):
            for name, span in spans(manifest, ending).items():
                if span["part"] == part:
                    raw = b"".join(values(one).contiguous().numpy().tobytes() for one in rounded[name])
                    assert len(raw) == span["bytes"], name
                    content[span["offset"] : span["offset"] + span["bytes"]] = np.frombuffer(raw, np.uint8)
        content.tofile(folder / part)
    manifest |= {"version": lesson + 1, "digest": hashlib.sha256(f"{scales} {lesson}".encode()).hexdigest()}
    probes = [{"token_ids": one["token_ids"]} for one in manifest["probes"]]
    for probe, said in zip(manifest["probes"], computed(folder, manifest | {"probes": probes}), strict=True):
        probe |= {"top_ids": said["ids"], "top_logits": [round(one, 5) for one in said["values"]]}
    for file in manifest["files"]:
        file["sha256"] = hashlib.sha256((folder / file["path"]).read_bytes()).hexdigest()
    (folder / "edge.json").write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":")))
    return folder


def ship(work: Path, folder: Path) -> dict[str, Any]:
    """Publishes a folder and updates the device of this channel; returns what that took."""
    channel, keys = work / "channel", Keys(work / "keys", work / "channel")
    if not channel.exists():
        publisher.init(channel, keys)
    started = time.monotonic()
    with publisher.opened(channel, keys) as opened:
        release = opened.publish(folder)
        published_s = time.monotonic() - started
        opened.refresh()
    with served(channel) as url:
        followed = Followed(url=url, model=release.model, target=release.target)
        root = (channel / "metadata" / "1.root.json").read_bytes()
        if not (work / "device").exists():
            create(work / "device", root, followed)
        (work / "device" / "channel.json").write_text(followed.model_dump_json())
        started, cpu_started = time.monotonic(), time.process_time()
        updated = update(Device(work / "device"))
    return {
        "bytes": updated.received_bytes, "whole": sum(one.bytes for one in release.files),
        "publish_s": round(published_s, 1), "update_s": round(time.monotonic() - started, 2),
        "update_cpu_s": round(time.process_time() - cpu_started, 2),
    }  # fmt: skip


@torch.no_grad()
def predicted(model: Any, model_dir: Path) -> torch.Tensor:
    """Log-probabilities of the held-out text: (2, 256, vocabulary)."""
    return model.eval()(held(model_dir)).logits.log_softmax(-1)


def held(model_dir: Path) -> torch.Tensor:
    return tokens_of(held_out_text().text[:8000], model_dir)[:512].view(2, 256)


@torch.no_grad()
def price(model: Any, rounded: Rounded, exact: torch.Tensor, model_dir: Path) -> dict[str, float]:
    """What rounding changes in the model's predictions: nats per token, and the perplexity over the model's own."""
    kept: dict[str, torch.Tensor] = {}
    parameters = dict(model.named_parameters())
    for name, parts in rounded.items():
        for layer, one in zip(layers_of(name, parameters), parts, strict=True):
            kept[layer] = parameters[layer].data
            parameters[layer].data = one.weight()
    said = predicted(model, model_dir)
    for layer, values in kept.items():
        parameters[layer].data = values
    ids = held(model_dir)[:, 1:, None]
    loss = [-float(one[:, :-1].gather(-1, ids).mean()) for one in (said, exact)]
    divergence = float((exact.exp() * (exact - said)).sum(-1).mean())
    return {"divergence": round(divergence, 4), "perplexity_ratio": round(math.exp(loss[0] - loss[1]), 4)}


@contextmanager
def served(channel: Path) -> Iterator[str]:
    """The channel over HTTP, by Python's own server."""
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(channel)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def table(done: list[dict[str, Any]]) -> str:
    """As docs/updates.md has it."""
    titles = (
        "lesson",
        "weights changed by",
        "update",
        "with fresh scales",
        "time to apply",
        "KL",
        "KL, fresh",
    )
    lines = [cpu(), "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for one in done:
        sizes = [
            f"{one[s]['bytes'] / 1e6:.2f} MB ({one[s]['bytes'] / one[s]['whole']:.1%})" if s in one else ""
            for s in SCALES
        ]
        prices = [str(one.get(s, {}).get("divergence", "")) for s in SCALES]
        applied = f"{one['parent']['update_s']:.1f} s"
        cells = (str(one["lesson"]), f"{one['relative_change']:.2%}", *sizes, applied, *prices)
        lines.append(f"| {' | '.join(cells)} |")
    sizes = [one["parent"]["bytes"] for one in done[1:]]
    lines += [
        "",
        f"{len(sizes)} lessons: {sum(sizes) / 1e6:.1f} MB in all, {sum(sizes) / max(1, len(sizes)) / 1e6:.2f} MB each",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
