"""LoRA's low-rank updates (arXiv 2106.09685), by peft, added to a model and merged into it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from everlearn.bundles.tasks import Task
from everlearn.errors import ConfigError
from train.models.heads import LABELLED_TASKS, heads_of, train_heads
from train.recipe import Tune


def add_adapters(model: nn.Module, tune: Tune, task: Task = "generate") -> nn.Module:
    """The same model, its base frozen and low-rank updates beside its linear layers, where ``tune`` says so.

    Raises ConfigError for targets that no layer has, and for a matrix that embeddings and output layer share: updates
    of the one, merged, would change the other. A ``task`` whose head is new has it trained in full.
    """
    if tune.method == "full":
        return model
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    targets = tune.targets if isinstance(tune.targets, str) else list(tune.targets)
    head = list(heads_of(model)) if task in LABELLED_TASKS else []
    config = LoraConfig(
        r=tune.rank,
        lora_alpha=tune.alpha,  # type: ignore[arg-type]
        lora_dropout=tune.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM" if task == "generate" else None,
        exclude_modules=rf"({'|'.join(head)})(\..*)?" if head else None,
    )
    shared = _shared(model) if targets != "all-linear" else set()  # which leaves the output layer out
    try:
        adapted = get_peft_model(model, config).get_base_model()  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(f"tune.targets: {error}", param="tune.targets") from None
    train_heads(adapted, head)
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer) and module.get_base_layer().weight.data_ptr() in shared:
            raise ConfigError(
                f"tune.targets: {name} is tied, embeddings and output layer share one matrix: leave it out, or "
                "train it with tune: full",
                param="tune.targets",
            )
    return adapted


def _shared(model: Any) -> set[int]:
    """Where the matrices lie that several modules use."""
    seen: Counter[int] = Counter()
    for module in model.modules():
        seen.update(p.data_ptr() for p in module._parameters.values() if p is not None)
    return {place for place, users in seen.items() if users > 1}


def merge_adapters(model: Any, tune: Tune) -> nn.Module:
    """The updates added to the weights they belong to: a model like its base, with nothing beside it."""
    if tune.method == "full":
        return model
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()  # type: ignore[operator]
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        if leftover in vars(model):
            delattr(model, leftover)
    return model
