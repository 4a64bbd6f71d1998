"""Training in processes of its own: ranks that talk over gloo, and runs to kill.

A fork server that has torch loaded starts each in a moment.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "train.run",
        "transformers.models.llama",
        "peft",
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint",
    ]
)
PATIENCE_S = 1000


def in_ranks(ranks: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """``work(*arguments)`` in ``ranks`` processes with torchrun's variables set; what each returned."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(ranks)]
    children = [
        CONTEXT.Process(target=_rank, args=(rank, ranks, port, pipes[rank][1], work, arguments), daemon=True)
        for rank in range(ranks)
    ]
    for child in children:
        child.start()
    try:
        answers = [pipe.recv() if pipe.poll(PATIENCE_S) else ("error", "no answer") for pipe, _ in pipes]
    finally:
        for child in children:
            child.kill()
            child.join()
    errors = [value for kind, value in answers if kind == "error"]
    assert not errors, "\n".join(errors)
    return [value for _, value in answers]


def _rank(
    rank: int, ranks: int, port: int, pipe: Any, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    said = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in said.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    import torch

    torch.set_num_threads(1)
    try:
        pipe.send(("value", work(*arguments)))
    except BaseException:  # noqa: BLE001 (the parent shows it)
        pipe.send(("error", traceback.format_exc()))


def fitted(
    recipe: dict[str, Any], base: Path, run_dir: Path, stop_after: int | None = None
) -> tuple[list[float], str, float | None]:
    """Trains; returns the loss of each step, a hash of the final weights (rank 0), and the held-out loss."""
    from train.data.packing import Packer
    from train.loop import fit
    from train.models.build import build_model
    from train.objectives.causal import CausalLM, next_token_validation
    from train.parallel.group import joined
    from train.recipe import TrainRecipe
    from train.run import gather, open_stores

    options = TrainRecipe.model_validate(recipe)
    losses: list[float] = []
    with joined(options.parallel) as group:
        train, held = open_stores(options, run_dir)
        model = build_model(options, base, base)
        assert held is not None
        result = fit(
            model,
            CausalLM(),
            Packer(train, options.sequence_tokens, options.seed),
            options,
            run_dir=run_dir,
            validate=next_token_validation(Packer(held, options.sequence_tokens, 0)),
            on_step=lambda report: losses.append(report.loss),
            should_stop=lambda: stop_after is not None and len(losses) + 1 >= stop_after,
            group=group,
        )
        state = gather(model, group)
        digest = weights_sha256(state or dict(model.named_parameters())) if group.is_first else ""
        return losses, digest, result.held_nll


def weights_sha256(state: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def start_run(run_dir: Path) -> Any:
    """A process that trains what run.json says; it may be killed."""
    child = CONTEXT.Process(target=_run, args=(run_dir,), daemon=True)
    child.start()
    return child


def _run(run_dir: Path) -> None:
    from train.run import train

    train(run_dir, on_step=lambda report: None, should_stop=lambda: False)
