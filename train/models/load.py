"""Loads a Hugging Face directory as a causal language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.importing.loaded import refuse_differences

if TYPE_CHECKING:
    import torch


def load_causal_lm(model_dir: Path, dtype: torch.dtype | None = None) -> Any:
    """A transformers causal language model, in float32 unless said and ready to predict; never runs its own code.

    Attention is spelt out where its scores are capped (Gemma 2): torch's fused attention knows no cap, and transformers
    leaves it out there without a word. Raises InvalidInput naming a tensor that is missing, misshapen or left over.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # everlearn shows its own
    config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True)
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    model, info = AutoModelForCausalLM.from_pretrained(
        model_dir,
        attn_implementation="eager" if capped else None,
        dtype=dtype or torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused by name
    )
    refuse_differences(info)
    return model.eval()
