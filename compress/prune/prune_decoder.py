"""A pruned model as a Hugging Face directory, and what it lost. Run as a child process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.measure.parent_divergence import held_windows, measure
from compress.quantize.calibration import calibration_windows, seen
from compress.recipe import Calibration, Prune
from everlearn.errors import Unsupported
from everlearn.processes.child import answer
from everlearn.progress import Progress
from train.evaluate.logits import torch_logits
from train.models.load import load_causal_lm
from train.models.save import saved_dtype

BATCH = 4


def build_pruned_decoder(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Prunes ``model_dir`` into ``directory``: how it was ``made``, and how it ``compared`` with its parent.

    Raises InvalidInput, and Unsupported where llmcompressor is needed and not installed.
    """
    model_dir, directory = Path(request["model_dir"]), Path(request["directory"])
    wanted = Prune.model_validate(request["prune"])
    chosen = Calibration.model_validate(request["calibration"])
    progress("loading torch", None)
    import torch

    windows = calibration_windows(chosen, model_dir / "tokenizer.json")
    model, made = pruned(load_causal_lm(model_dir), wanted, torch.from_numpy(windows), progress)
    progress("writing", None)
    model.to(saved_dtype(model_dir)).save_pretrained(directory)
    del model
    held = held_windows(model_dir, request["tokens"])
    return {
        "made": {**made, "calibration_seen": seen(windows)},
        "compared": measure(model_dir, held, torch_logits(load_causal_lm(directory), held), progress),
    }


def pruned(model: Any, wanted: Prune, ids: Any, progress: Progress) -> tuple[Any, dict[str, Any]]:
    """The pruned model, its layers solved anew where some went, and what went.

    ids: int64 (windows, seq) of the calibration set.
    """
    from compress.prune.layers import chosen_layers, layers_of, least_missed, with_layers
    from compress.prune.reconstruct import batch_of, reconstruct, rounded
    from compress.prune.sparsity import share_of_zeros
    from compress.prune.width import narrow_attention, narrow_ffn

    if wanted.sparsity is not None:
        set_zeros(model, wanted, ids, progress)
        return model, {"zeros": round(share_of_zeros(model), 4)}
    whole, kept, made = model, list(range(len(layers_of(model)))), dict[str, Any]()
    if wanted.layers is not None or wanted.drop:
        gone = chosen_layers(
            wanted,
            len(kept),
            lambda drop: least_missed(
                model, ids, drop, lambda done, total: progress("trying without each layer", done / total)
            ),
        )
        kept = [one for one in kept if one not in gone]
        model = with_layers(model, kept)
        made["dropped"] = gone
    if wanted.ffn is not None:
        model = narrow_ffn(
            model, wanted.ffn, ids[:BATCH], lambda done, total: progress("weighing columns", done / total)
        )
    if wanted.kv_heads is not None:
        model = narrow_attention(
            model, wanted.kv_heads, ids[:BATCH], lambda done, total: progress("weighing heads", done / total)
        )
    distances = reconstruct(
        whole,
        model,
        kept,
        batch_of(ids),
        lambda done: progress("solving for what was taken out", done),
    )
    return model, made | {"reconstructed": rounded(distances)}


def set_zeros(model: Any, wanted: Prune, ids: Any, progress: Progress) -> None:
    """Zeros in place: magnitude by hand, Wanda (arXiv 2306.11695) and SparseGPT (2301.00774) by llmcompressor."""
    from compress.prune.sparsity import zero_smallest

    assert wanted.sparsity is not None
    progress(f"setting weights to zero by {wanted.method}", None)
    if wanted.method == "magnitude":
        zero_smallest(model, wanted.sparsity, wanted.pattern == "2:4")
        return
    try:
        from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    except ImportError:
        raise Unsupported(
            f"{wanted.method} is done by llmcompressor, which is not installed here: "
            "pip install 'everlearn[compress]'; method: magnitude needs nothing more"
        ) from None
    from compress.targets.vllm import one_shot

    kind = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[wanted.method]
    structure = "2:4" if wanted.pattern == "2:4" else "0:0"
    one_shot(model, ids, [kind(sparsity=wanted.sparsity, mask_structure=structure, ignore=["re:.*lm_head"])])


if __name__ == "__main__":
    answer(build_pruned_decoder)
