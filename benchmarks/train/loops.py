"""One of the loops that `benchmarks.train.fine_tuning` compares, in a process of its own; answers one line of JSON.

All of them: float32 weights, matrices in bfloat16 under autocast where that is asked for, fused AdamW, gradients
clipped to norm 1, a constant learning rate, the loss of every step read.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.loop import choose_dtype, fit, peak_memory_bytes
from train.models.load import load_causal_lm
from train.objectives.causal import CausalLM
from train.recipe import Checkpoint, FitOptions, Optimizer, Schedule

LR, BETAS, WEIGHT_DECAY, CLIP = 1e-5, (0.9, 0.95), 0.1, 1.0

Tell = Callable[[float], None]
"""Called with the loss at the end of each step."""


def everlearn(work: dict[str, Any], folder: Path, dtype: torch.dtype, tell: Tell) -> None:
    """As a run of a recipe does it: the packer, the objective, determinism and the log included."""
    from train.data.packing import Packer
    from train.data.store import open_store

    options = FitOptions(
        sequence_tokens=work["sequence_tokens"],
        batch_tokens=work["rows"] * work["sequence_tokens"],
        micro_batch=work["rows"],
        steps=work["steps"],
        dtype="bfloat16" if dtype == torch.bfloat16 else "float32",
        optimizer=Optimizer(lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, clip=CLIP),
        schedule=Schedule(warmup_fraction=0, final_fraction=1),
        checkpoint=Checkpoint(every_s=1e9),
        seed=0,
    )
    packer = Packer(open_store(folder / "store"), work["sequence_tokens"], seed=0)
    model = load_causal_lm(Path(work["model_dir"]))
    run_dir = folder / f"run-{time.monotonic_ns()}"
    run_dir.mkdir()
    fit(model, CausalLM(), packer, options, run_dir=run_dir, on_step=lambda report: tell(report.loss))


def bare(work: dict[str, Any], folder: Path, dtype: torch.dtype, tell: Tell) -> None:
    """What a person writes who needs nothing else."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_causal_lm(Path(work["model_dir"])).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    for batch in batches(folder):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(**{name: values.to(device) for name, values in batch.items()}, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tell(loss.item())


def hugging_face(work: dict[str, Any], folder: Path, dtype: torch.dtype, tell: Tell) -> None:
    """transformers.Trainer on the same rows in the same order."""
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    class Telling(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                tell(float(logs["loss"]))

    rows = [
        {name: values[row] for name, values in batch.items()}
        for batch in batches(folder)
        for row in range(work["rows"])
    ]
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=work["rows"],
        max_steps=work["steps"],
        learning_rate=LR,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=CLIP,
        optim="adamw_torch_fused",
        bf16=dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    InOrder(
        model=load_causal_lm(Path(work["model_dir"])),
        args=arguments,
        train_dataset=rows,  # type: ignore[arg-type]
        data_collator=default_data_collator,
        callbacks=[Telling()],
    ).train()


def batches(folder: Path) -> list[dict[str, torch.Tensor]]:
    """input_ids and labels of each step, int64 (rows, sequence_tokens)."""
    with np.load(folder / "batches.npz") as arrays:
        named = {name: torch.from_numpy(arrays[name]) for name in ("input_ids", "labels")}
    steps = len(named["input_ids"])
    return [{name: values[step] for name, values in named.items()} for step in range(steps)]


LOOPS = {"bare torch loop": bare, "everlearn": everlearn, "Hugging Face Trainer": hugging_face}


def main() -> None:
    loop, work, folder = LOOPS[sys.argv[1]], json.loads(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(work["threads"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    losses: list[float] = []
    ends: list[float] = []

    def tell(loss: float) -> None:
        losses.append(loss)
        ends.append(time.perf_counter())

    loop(work, folder, choose_dtype(work["dtype"], device), tell)
    timed = work["steps"] - work["warm_up_steps"]
    tokens = timed * work["rows"] * work["sequence_tokens"]
    figures = {
        "tokens_per_s": tokens / (ends[-1] - ends[work["warm_up_steps"] - 1]),
        "peak_memory_bytes": peak_memory_bytes(device),
        "losses": losses,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
