"""INT8 weights and activations for vLLM, by llmcompressor's GPTQ. Run as a child process.

Weights have a scale each output channel; activations are rounded token by token as they come, so that nothing about
them is fixed by the calibration set. The output layer and the embedding stay bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compress.calibration import calibration_windows, seen
from compress.measure_decoder import held_windows, measure
from compress.recipe import Calibration
from everlearn.child import answer
from everlearn.errors import Unsupported
from everlearn.progress import Progress
from train.evaluate import load_causal_lm, torch_logits

BATCH = 4
INSTALL = "w8a8 is made by llmcompressor, which is not installed here: pip install 'everlearn[compress]'"


def build(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Quantizes ``model_dir`` into ``directory``: how it was ``made``, and how it ``compared`` with its parent.

    Raises Unsupported where llmcompressor is not installed.
    """
    if find_spec("llmcompressor") is None:
        raise Unsupported(INSTALL)
    model_dir, directory = Path(request["model_dir"]), Path(request["directory"])
    progress("loading llmcompressor", None)
    import llmcompressor
    import torch
    from llmcompressor.modifiers.quantization import GPTQModifier
    from torch.utils.data import DataLoader

    windows = calibration_windows(
        Calibration.model_validate(request["calibration"]), model_dir / "tokenizer.json"
    )
    rows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in torch.from_numpy(windows)]
    model = load_causal_lm(model_dir)
    progress("quantizing", None)
    llmcompressor.oneshot(
        model=model,
        dataset=DataLoader(rows, batch_size=BATCH),  # type: ignore[arg-type]
        recipe=[GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"])],
        pipeline="sequential",
    )
    for module in model.modules():
        if not hasattr(module, "quantization_scheme"):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    progress("writing", None)
    model.save_pretrained(directory, save_compressed=True)
    del model
    held = held_windows(model_dir, request["tokens"])
    made = {"scheme": "W8A8", "calibration_seen": seen(windows)}
    return {
        "made": made | {"builder": f"llmcompressor {llmcompressor.__version__}"},
        "compared": measure(model_dir, held, torch_logits(load_causal_lm(directory), held), progress),
    }


if __name__ == "__main__":
    answer(build)
