"""The loop's report of each optimizer step: to the log, the parent process, and followers of a job."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepReport:
    """One optimizer step. ``loss``: nats per target; ``tokens``: seen since the start, padding left out. ``held``: the
    task's own measures on the held-out data, where they were taken after this step. ``components``: of a mixture, the
    tokens of each that were seen."""

    step: int
    steps: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    tokens_per_s: float
    seconds_left: float
    held_nll: float | None = None
    held: dict[str, float] | None = None
    components: dict[str, int] | None = None
