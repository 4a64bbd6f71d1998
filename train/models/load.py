"""Loads a Hugging Face directory as the model of a task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.bundles.tasks import AUTO_CLASSES, Task
from everlearn.importing.loaded import refuse_differences

if TYPE_CHECKING:
    import torch


def load_causal_lm(model_dir: Path, dtype: torch.dtype | None = None) -> Any:
    """The model of task ``generate``; see :func:`load_model`."""
    return load_model(model_dir, "generate", dtype)


def load_model(
    model_dir: Path,
    task: Task,
    dtype: torch.dtype | None = None,
    *,
    new_head: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """A transformers model, in float32 unless said and ready to predict; never runs its own code.

    ``new_head``: whether the head may be new, with random weights (torch's generator decides which), on the body of a
    model of another task. ``settings``: of config.json, to be otherwise, such as ``id2label`` and dropout.
    Attention is spelt out where its scores are capped (Gemma 2): torch's fused attention knows no cap, and transformers
    leaves it out there without a word. Raises InvalidInput naming a tensor that is missing, misshapen or left over.
    """
    import torch
    import transformers
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # everlearn shows its own
    config = transformers.AutoConfig.from_pretrained(
        model_dir, trust_remote_code=False, local_files_only=True, **(settings or {})
    )
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    kind: Any = getattr(transformers, AUTO_CLASSES[task])
    model, info = kind.from_pretrained(
        model_dir,
        config=config,
        attn_implementation="eager" if capped else None,
        dtype=dtype or torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused by name
    )
    refuse_differences(
        info,
        encoder=model if task == "embed" else None,
        head=task not in ("generate", "embed"),
        new_head_of=model if new_head else None,
    )
    return model.eval()
