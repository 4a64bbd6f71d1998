"""The training loop: rows in, gradients summed over everything a step sees, one update, and on.

A step is a function of (options, step, weights): rows, learning rate and dropout come from its number. So a run
killed anywhere and started again ends with the same bits as one left alone, on the same number of ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everlearn.errors import Conflict
from everlearn.memory import peak_bytes
from train.data.mixing.mixed_rows import MixedRows
from train.errors import Diverged
from train.objectives.objective import Batches, HeldOut, Objective
from train.optim import adamw, lr_at
from train.parallel.group import Group, full_tensor
from train.recipe import FitOptions, recipe_diff
from train.report import StepReport
from train.runs.checkpoint import Checkpoints, tensors_of
from train.runs.step_log import StepLog


@dataclass(frozen=True)
class Asked:
    """What is asked of a run beside the next step. Once any rank is asked, all ranks do it after the same step."""

    save: bool = False
    stop: bool = False


@dataclass(frozen=True)
class Update:
    """What one optimizer step did. ``loss``: nats per target; ``grad_norm``: before clipping."""

    loss: float
    grad_norm: float
    lr: float
    asked: Asked


@dataclass(frozen=True)
class Measured:
    """Of the held-out rows: ``nll`` in nats per target, and the task's own ``figures`` by name."""

    nll: float
    figures: dict[str, float]


@dataclass(frozen=True)
class FitResult:
    """``finished`` is false where ``should_stop`` ended the run; a checkpoint then holds what was done.

    ``train_loss`` is the mean of the last tenth of the steps done here; ``held_nll`` in nats per target, and
    ``held`` in the task's own measures.
    """

    finished: bool
    steps: int
    train_loss: float
    held_nll_before: float | None
    held_nll: float | None
    tokens: int
    tokens_per_s: float
    seconds: float
    peak_memory_bytes: int
    held: dict[str, float] = field(default_factory=dict[str, float])
    held_before: dict[str, float] = field(default_factory=dict[str, float])


def fit(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    options: FitOptions,
    *,
    run_dir: Path,
    validate: HeldOut | None = None,
    whole_steps: bool = False,
    after_update: Callable[[Group], None] | None = None,
    mixed: MixedRows | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    group: Group | None = None,
    identity: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains ``model`` in place, from the newest checkpoint in ``run_dir`` where there is one.

    ``after_update``: what a step changes beside the weights; a buffer of the model, so that checkpoints hold it.
    ``mixed``: of a mixture, what tells how much of each component was seen. ``identity`` names what else determines the result (digests of data, tokenizer, base); a checkpoint of another
    identity or other options is refused. Raises Diverged, and Conflict with the differences.
    """
    group = group or Group()
    with deterministic(group.device):
        run = _Run(model, objective, batches, options, run_dir, validate, group, identity or {}, whole_steps)
        run.after_update, run.mixed = after_update, mixed
        return run.go(on_step or (lambda report: None), should_stop or (lambda: False))


class _Run:
    """What the steps of one call of :func:`fit` share."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        batches: Batches,
        options: FitOptions,
        run_dir: Path,
        validate: HeldOut | None,
        group: Group,
        identity: Mapping[str, Any],
        whole_steps: bool,
    ) -> None:
        self.model, self.objective, self.batches, self.options = model, objective, batches, options
        self.validate, self.group = validate, group
        self.steps = total_steps(options, batches.rows)
        self.micro_batch, self.accumulation = divide(options, group.ranks)
        if whole_steps:
            self.micro_batch, self.accumulation = options.rows // group.ranks, 1
        self.dtype = choose_dtype(options.dtype, group.device)
        self.identity = {"options": options.model_dump(mode="json"), **identity}
        if options.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        self.loss_module = group.wrap(model)
        self.optimizer = adamw(self.loss_module, options.optimizer)
        self.trained = [p for p in self.loss_module.parameters() if p.requires_grad]
        self.checkpoints = Checkpoints(run_dir / "checkpoints", options.checkpoint.keep, group)
        self.log = StepLog(run_dir, options.log) if group.is_first else None
        self.after_update: Callable[[Group], None] | None = None
        self.mixed: MixedRows | None = None
        self.step = self.tokens = 0
        self.seconds = 0.0
        self.held_before: Measured | None = None

    def go(self, on_step: Callable[[StepReport], None], should_stop: Callable[[], bool]) -> FitResult:
        first = self.resume()
        if self.validate and self.held_before is None:
            self.held_before = self.measure()
        losses: list[float] = []
        began, saved = time.monotonic(), time.monotonic()
        tokens_before, seconds_before = self.tokens, self.seconds
        stopped, held_out = False, self.held_before
        while self.step < self.steps and not stopped:
            time_to_save = time.monotonic() - saved > self.options.checkpoint.every_s
            asked = Asked(save=self.group.is_first and time_to_save, stop=should_stop())
            update = self.train_step(asked)
            stopped = update.asked.stop
            self.seconds = seconds_before + time.monotonic() - began
            losses.append(update.loss)
            every = self.options.validation.every_steps
            measured = None
            if self.validate and every and self.step % every == 0 and self.step < self.steps:
                measured = held_out = self.measure()
            speed = (self.tokens - tokens_before) / (time.monotonic() - began)
            left = (self.steps - self.step) * (time.monotonic() - began) / (self.step - first)
            report = StepReport(
                step=self.step,
                steps=self.steps,
                loss=update.loss,
                lr=update.lr,
                grad_norm=update.grad_norm,
                tokens=self.tokens,
                tokens_per_s=speed,
                seconds_left=left,
                held_nll=measured and measured.nll,
                held=(measured and measured.figures) or None,
                components=self.mixed.seen(self.step * self.options.rows) if self.mixed else None,
            )
            if self.log:
                self.log.write(report)
            on_step(report)
            if self.step < self.steps and (stopped or update.asked.save or self.is_checkpoint_step()):
                self.save()
                saved = time.monotonic()
        if self.validate and self.step == self.steps and self.step > 0:
            held_out = self.measure()
        if self.log:
            self.log.close()
        tail = losses[-max(1, self.steps // 10) :]
        return FitResult(
            finished=self.step == self.steps,
            steps=self.step,
            train_loss=sum(tail) / len(tail) if tail else math.nan,
            held_nll_before=self.held_before and self.held_before.nll,
            held_nll=held_out and held_out.nll,
            tokens=self.tokens,
            tokens_per_s=self.tokens / self.seconds if self.seconds else 0.0,
            seconds=self.seconds,
            peak_memory_bytes=peak_memory_bytes(self.group.device),
            held=held_out.figures if held_out else {},
            held_before=self.held_before.figures if self.held_before else {},
        )

    def train_step(self, asked: Asked) -> Update:
        """One optimizer step. What any rank is ``asked`` travels with the sums of the loss, and comes back for all."""
        group, options = self.group, self.options
        torch.manual_seed(hash_seed(options.seed, self.step, group.rank))
        loss_sum = torch.zeros((), device=group.device)
        targets = torch.zeros((), device=group.device)
        seen = 0
        for part in range(self.accumulation):
            batch = self.batches.batch(
                self.step * self.accumulation + part, self.micro_batch, group.rank, group.ranks
            )
            seen += int((batch["document_ids"] >= 0).sum())
            last = part == self.accumulation - 1
            with group.accumulating(self.loss_module, last):
                with self.precision():
                    loss, counted = self.loss_module(self.objective, self.to_device(batch))
                loss.backward()
            loss_sum += loss.detach().float()
            targets += counted
        flags = torch.tensor([seen, asked.stop, asked.save], device=group.device)
        total, count, seen_all, stops, saves = group.sum([loss_sum, targets, *flags])
        norm = self.scale_gradients(count)
        loss_mean = total / max(count, 1)
        if not (math.isfinite(loss_mean) and math.isfinite(norm)):
            raise Diverged(
                f"the loss is {loss_mean} and the gradient's norm {norm} at step {self.step + 1} of {self.steps}: "
                f"the run ended and nothing was registered. Try a smaller optimizer.lr than {options.optimizer.lr}"
            )
        lr = lr_at(self.step, self.steps, options.optimizer.lr, options.schedule)
        for settings in self.optimizer.param_groups:
            settings["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.after_update:
            self.after_update(group)
        self.step += 1
        self.tokens += int(seen_all)
        return Update(loss_mean, norm, lr, Asked(save=saves > 0, stop=stops > 0))

    def scale_gradients(self, count: float) -> float:
        """From sums (averaged over ranks by DDP and FSDP) to the clipped mean per target; returns its norm."""
        grads = [p.grad for p in self.trained if p.grad is not None]
        to_mean = (self.group.ranks if self.group.kind != "none" else 1) / max(count, 1)
        norm = float(full_tensor(torch.nn.utils.get_total_norm(grads))) * to_mean
        clip = self.options.optimizer.clip
        factor = to_mean * (min(1.0, clip / (norm + 1e-6)) if clip else 1.0)
        torch._foreach_mul_(grads, factor)
        return norm

    @torch.no_grad()
    def measure(self) -> Measured:
        """Mean loss per target over the held-out rows, and the task's own measures, each row counted once however many
        ranks share them."""
        held_out, group = self.validate, self.group
        assert held_out
        row_tokens = held_out.row_tokens or self.options.sequence_tokens
        rows = min(held_out.batches.rows, max(1, int(self.options.validation.tokens // row_tokens)))
        judge, said = held_out.judge, list[Tensor]()
        sums = [torch.zeros((), device=group.device), torch.zeros((), device=group.device)]
        self.model.eval()
        for step in range(math.ceil(rows / (self.micro_batch * group.ranks))):
            batch = held_out.batches.batch(step, self.micro_batch, group.rank, group.ranks)
            mine = rows - (step * group.ranks + group.rank) * self.micro_batch
            batch["labels"][max(0, mine) :] = -100
            with self.precision():
                measured = self.loss_module(
                    judge.predictions if judge else held_out.objective, self.to_device(batch)
                )
            sums[0] += measured[0].float()
            sums[1] += measured[1]
            said += measured[2:]
        self.model.train()
        total, count = group.sum(sums)
        figures = judge.score(group.gather(said)) if judge else {}
        return Measured(total / max(count, 1), figures)

    def precision(self) -> torch.autocast:
        """bfloat16 where matrices are multiplied; weights, sums and the optimizer stay float32."""
        return torch.autocast(
            self.group.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16
        )

    def to_device(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {
            key: torch.as_tensor(value).to(self.group.device, non_blocking=True)
            for key, value in batch.items()
        }

    def is_checkpoint_step(self) -> bool:
        every = self.options.checkpoint.every_steps
        return bool(every and self.step % every == 0)

    def save(self) -> None:
        state = {
            "identity": self.identity,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "held_nll_before": self.held_before and self.held_before.nll,
            "held_before": self.held_before.figures if self.held_before else {},
        }
        self.checkpoints.save(self.step, tensors_of(self.model, self.optimizer), state)

    def resume(self) -> int:
        """Goes back to the newest checkpoint; returns its step, or 0."""
        self.model.train()
        found = self.checkpoints.newest()
        if found:
            refuse_other_run(found.state["identity"], self.identity)
            self.checkpoints.load(found, tensors_of(self.model, self.optimizer))
            self.step, self.tokens = found.step, found.state["tokens"]
            self.seconds = found.state["seconds"]
            if (nll := found.state["held_nll_before"]) is not None:
                self.held_before = Measured(nll, found.state.get("held_before") or {})
        if self.log:
            self.log.begin(self.step)
        return self.step


def total_steps(options: FitOptions, rows: int) -> int:
    """Optimizer steps of the run: as many as asked for, or as the epochs fill."""
    return options.steps or max(1, round(options.epochs * rows / options.rows))


def divide(options: FitOptions, ranks: int) -> tuple[int, int]:
    """Rows at once on a rank, at most ``micro_batch``, and how many times: together a rank's share of a step."""
    share = options.rows // ranks
    rows = next(size for size in range(min(options.micro_batch, share), 0, -1) if share % size == 0)
    return rows, share // rows


def choose_dtype(asked: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 only where the hardware multiplies it."""
    if asked != "auto":
        return getattr(torch, asked)
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        can = torch.cpu.get_capabilities()
        has = bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return torch.bfloat16 if has else torch.float32


def hash_seed(seed: int, step: int, rank: int) -> int:
    """A random state for dropout that needs no saving."""
    return (seed * 1_000_003 + step) * 1_009 + rank


def refuse_other_run(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises Conflict with what differs."""
    lines = recipe_diff(saved["options"], now["options"])
    lines += [
        f"{key}: {saved.get(key)!r} → {now.get(key)!r}"
        for key in sorted(saved.keys() | now.keys())
        if key != "options" and saved.get(key) != now.get(key)
    ]
    if lines:
        raise Conflict(
            "the run's checkpoint was made with another recipe; go on with the old one or use another run "
            "folder. What changed:\n  " + "\n  ".join(lines)
        )


def peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes()


@contextmanager
def deterministic(device: torch.device) -> Generator[None]:
    """Only kernels that give the same bits twice; new memory is not filled, which would cost a pass over it.

    On CUDA some attention kernels have no such twin: torch then warns, and runs are alike but to rounding.
    """
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill
