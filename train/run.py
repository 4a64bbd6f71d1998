"""One process of a training run: from a run folder's ``run.json`` to a model in it.

run.json     what to do: the recipe, where base and tokenizer lie, threads
data/        prepared stores, where the recipe names files
checkpoints/ to go on from
steps.jsonl  one line per step
model/       the result, a Hugging Face directory
outcome.json written last: the run is finished
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from everlearn.bundles.durable import write_file
from everlearn.errors import InvalidInput
from train.data.packing import Packer
from train.data.store import TokenStore, open_store
from train.data.tokenize import Tokens
from train.errors import Stopped
from train.evaluate.bits_per_byte import bits_per_byte, bytes_per_target, token_bytes
from train.loop import FitResult, choose_dtype, divide, fit, total_steps
from train.models.build import build_model, refuse_misfit
from train.models.expert_balance import ExpertBalance
from train.models.image_text import refuse_other_images
from train.models.save import write_model
from train.objectives.causal import next_token_validation
from train.objectives.objective import HeldOut, RunInputs, objective_for
from train.parallel.group import Group, full_tensor, joined
from train.recipe import TrainRecipe, validate_recipe
from train.report import StepReport
from train.runs.checkpoint import Checkpoints
from train.runs.identity import base_digest
from train.runs.mixture import MixtureRun, mixture_of


def train(
    run_dir: Path,
    on_step: Callable[[StepReport], None],
    should_stop: Callable[[], bool],
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains as run.json says and returns the outcome. ``tell`` gets what a person should know.

    Raises Diverged, Stopped, Conflict, InvalidInput.
    """
    request = json.loads((run_dir / "run.json").read_bytes())
    recipe = validate_recipe(TrainRecipe, request["recipe"])
    base = Path(request["model_dir"]) if request["model_dir"] else None
    tokenizer_dir = Path(request["tokenizer_dir"])
    torch.set_num_threads(max(1, request["threads"] // recipe.ranks))
    with joined(recipe.parallel) as group:
        stores = open_stores(recipe, run_dir)
        tokenizer = Tokens(tokenizer_dir).sha256
        kept = open_store(recipe.keep.store) if recipe.keep else None
        refuse_foreign_tokens((*stores, kept), tokenizer)
        refuse_other_data(recipe, stores)
        identity = identity_of(stores, kept, base, tokenizer)
        labels = stores[0].card.labels
        model = build_model(recipe, base, tokenizer_dir, labels)
        refuse_misfit(model, recipe, stores[0].card.vocab_size)
        for store in filter(None, stores):
            refuse_other_images(model, store)
        mixture = mixture_of(recipe, stores[0])
        packer = Packer(stores[0], recipe.sequence_tokens, recipe.seed, mixture=mixture)
        held_out = held_out_packer(recipe, stores)
        inputs = RunInputs(recipe, packer, held_out, base, group.device, tokenizer_dir, *stores, mixture)
        training = objective_for(inputs)
        mixed = MixtureRun.of(recipe, training.batches)
        if mixed:
            tell(mixed.ahead())
        result = fit(
            model,
            training.objective,
            training.batches,
            recipe,
            run_dir=run_dir,
            validate=training.validation,
            whole_steps=training.whole_steps,
            after_update=balance_of(model, recipe),
            mixed=mixed and mixed.rows,
            on_step=on_step,
            should_stop=should_stop,
            group=group,
            identity=identity,
        )
        if not result.finished:
            raise Stopped(f"the run stopped at step {result.steps}; started again, it goes on from there")
        state = gather(model, group)
        if group.is_first:
            fresh = build_model(recipe, base, tokenizer_dir, labels) if group.kind == "fsdp2" else model
            write_model(fresh, state, recipe, base, tokenizer_dir, run_dir / "model")
            resolved = resolve(recipe, training.batches.rows, request, group)
            metrics = metrics_of(result, recipe.objective_spec.data) | training.metrics
            metrics |= bits_of(result, training.validation, recipe, tokenizer_dir)
            if mixed:
                metrics |= {"mixture": mixed.metrics()}
                tell(mixed.done())
            outcome = {"metrics": metrics, "recipe": resolved, "identity": identity}
            write_file(run_dir / "outcome.json", json.dumps(outcome, indent=1).encode())
        Checkpoints(run_dir / "checkpoints", 1, group).clear()
    return {}


def open_stores(recipe: TrainRecipe, run_dir: Path) -> tuple[TokenStore, TokenStore | None]:
    """What to train on, and what to measure on."""
    if recipe.data.store:
        held = recipe.data.held_store
        return open_store(recipe.data.store), open_store(held) if held else None
    return open_store(run_dir / "data" / "train"), open_store(run_dir / "data" / "held")


def held_out_packer(recipe: TrainRecipe, stores: tuple[TokenStore, TokenStore | None]) -> Packer | None:
    """The rows to measure on; None without a store, or with an empty one."""
    held_out = stores[1]
    return Packer(held_out, recipe.sequence_tokens, seed=0) if held_out else None


def held_of(recipe: TrainRecipe, stores: tuple[TokenStore, TokenStore | None]) -> HeldOut | None:
    """Those rows, measured by the loss of the next token."""
    return next_token_validation(held_out_packer(recipe, stores))


def identity_of(
    stores: tuple[TokenStore, TokenStore | None],
    kept: TokenStore | None,
    base: Path | None,
    tokenizer: str,
) -> dict[str, Any]:
    """Digests of what a checkpoint depends on beside its recipe."""
    return {
        "train_data": stores[0].card.sha256,
        "held_data": stores[1].card.sha256 if stores[1] else None,
        "kept_data": kept.card.sha256 if kept else None,
        "base": base_digest(base) if base else None,
        "tokenizer": tokenizer,
    }


def refuse_foreign_tokens(stores: Sequence[TokenStore | None], sha256: str) -> None:
    """Raises InvalidInput where a store's tokens are another tokenizer's."""
    for store in filter(None, stores):
        if store.card.tokenizer_sha256 != sha256:
            raise InvalidInput(
                f"the data was tokenized by another tokenizer ({store.card.tokenizer_sha256[:12]}…) than the "
                f"model's ({sha256[:12]}…): prepare it with this model's",
                param="data.store",
            )


def refuse_other_data(recipe: TrainRecipe, stores: tuple[TokenStore, TokenStore | None]) -> None:
    """Raises InvalidInput where a store holds other examples than the objective learns from, or other labels than the
    one beside it."""
    spec = recipe.objective_spec
    wanted = None if spec.data == "seq2seq" else spec.data
    for store in filter(None, stores):
        if store.card.kind != wanted:
            raise InvalidInput(
                f"the store holds {store.card.kind or 'texts'}, and objective: {spec.name} learns from "
                f"{wanted or 'texts'}: prepare it with kind: {wanted or 'auto'}",
                param="data.store",
            )
    if stores[1] and stores[1].card.labels != stores[0].card.labels:
        known, theirs = set(stores[0].card.labels or ()), set(stores[1].card.labels or ())
        other = ", ".join(sorted(known ^ theirs)[:5])
        raise InvalidInput(
            f"the two stores have other labels ({other}): prepare both sides in one call, with the second as held",
            param="data.held_store",
        )


def gather(model: torch.nn.Module, group: Group) -> dict[str, torch.Tensor] | None:
    """Trained tensors by name, gathered on rank 0; None where the model itself has them in full."""
    if group.kind != "fsdp2":
        return None
    state: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensor = full_tensor(parameter.detach())
            if group.is_first:
                state[name] = tensor.cpu()
    if group.is_first:
        state |= {name: buffer.cpu() for name, buffer in kept_buffers(model)}
    return state


def kept_buffers(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """By name, those that are saved. Not by ``state_dict``: under FSDP2 all ranks have to call it."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


def resolve(recipe: TrainRecipe, rows: int, request: Mapping[str, Any], group: Group) -> dict[str, Any]:
    """The recipe with everything decided that it had left open, the version of its base too."""
    dtype = str(choose_dtype(recipe.dtype, group.device)).removeprefix("torch.")
    decided = {
        "steps": total_steps(recipe, rows),
        "micro_batch": divide(recipe, group.ranks)[0],
        "dtype": dtype,
        "threads": request["threads"],
        "objective": recipe.objective_spec.name,
        "base": (request["base"] or {}).get("ref") or recipe.base,
    }
    return recipe.model_copy(update=decided).model_dump(mode="json")


def balance_of(model: torch.nn.Module, recipe: TrainRecipe) -> Callable[[Group], None] | None:
    """What keeps the experts of a model from scratch busy alike."""
    architecture = recipe.architecture
    if architecture is None or architecture.experts is None or not architecture.experts.balance:
        return None
    return ExpertBalance(model, architecture.experts.balance).step


def bits_of(
    result: FitResult, held: HeldOut | None, recipe: TrainRecipe, tokenizer_dir: Path
) -> dict[str, float]:
    """Bits per byte of the held-out text, where its next tokens were measured and the tokenizer tells their bytes."""
    sizes = token_bytes(tokenizer_dir) if recipe.objective_spec.task == "generate" else None
    if held is None or sizes is None:
        return {}
    rows = min(held.batches.rows, max(1, recipe.validation.tokens // recipe.sequence_tokens))
    each = bytes_per_target(held.batches, rows, sizes)
    losses = {"before": result.held_nll_before, "": result.held_nll}
    return {
        f"held_bits_per_byte{'_' * bool(when)}{when}": bits_per_byte(loss, each)
        for when, loss in losses.items()
        if each and loss is not None
    }


def metrics_of(result: FitResult, labelled: str | None = None) -> dict[str, Any]:
    """Of a run on ``labelled`` data, the task's own measures in place of the perplexity."""

    def perplexity(nll: float | None) -> float | None:
        return None if nll is None else round(math.exp(min(nll, 700)), 4)

    return {
        "train_loss": round(result.train_loss, 6),
        "held_nll_before": result.held_nll_before,
        "held_nll": result.held_nll,
        **(
            _own_measures(result)
            if labelled
            else {
                "held_perplexity_before": perplexity(result.held_nll_before),
                "held_perplexity": perplexity(result.held_nll),
            }
        ),
        "steps": result.steps,
        "tokens": result.tokens,
        "tokens_per_s": round(result.tokens_per_s, 2),
        "seconds": round(result.seconds, 2),
        "peak_memory_bytes": result.peak_memory_bytes,
    }


def _own_measures(result: FitResult) -> dict[str, Any]:
    before = {f"held_{name}_before": round(value, 6) for name, value in result.held_before.items()}
    return before | {f"held_{name}": round(value, 6) for name, value in result.held.items()}
