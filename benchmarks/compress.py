"""What each compression costs and weighs, beside each other: ``python -m benchmarks.compress MODEL_DIR…``.

Prints one table a model. With ``--perturb`` the same model is measured again with noise on its weights, as large as
a fine-tuning leaves: weights that came from another quantized file lie on its grid, fine-tuned ones on none.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from compress.export import build
from compress.recipe import Calibration, CompressRecipe
from everlearn.errors import EverlearnError
from everlearn.progress import shown

NOISE = 0.02
"""Standard deviation of the noise, as a share of each matrix's own."""


def recipes(calibration: Calibration) -> list[CompressRecipe]:
    """Every target of a decoder that can be made here."""
    found = [
        CompressRecipe(to="int4-onnx", weights="rtn"),
        CompressRecipe(to="int4-onnx", weights="gptq", calibration=calibration),
        CompressRecipe(to="int8-onnx"),
    ]
    if find_spec("llmcompressor"):
        found.append(CompressRecipe(to="w8a8", calibration=calibration))
    return found


def measure(model_dir: Path, calibration: Calibration) -> None:
    """One table on stdout, a row a recipe."""
    print(
        "| made | perplexity | ratio | KL, nats | same top token | MB | seconds |\n|---|---|---|---|---|---|---|"
    )
    for recipe in recipes(calibration):
        name = f"{recipe.to}, {recipe.weights}" if recipe.to == "int4-onnx" else recipe.to
        with tempfile.TemporaryDirectory() as folder, shown() as progress:
            began = time.monotonic()
            try:
                _, metrics = build(model_dir, Path(folder), "generate", recipe, progress)
            except EverlearnError as error:
                print(f"| {name} | {error.message} |", flush=True)
                continue
            seconds = time.monotonic() - began
            size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e6
        figures = [metrics[key] for key in ("perplexity", "perplexity_ratio", "divergence", "agreement")]
        print(f"| {name} | {' | '.join(map(str, figures))} | {size:.1f} | {seconds:.0f} |", flush=True)


def perturb(model_dir: Path, target: Path) -> None:
    """A copy of the model with noise on every matrix."""
    import torch

    from train.evaluate import load_causal_lm

    shutil.copytree(model_dir, target, ignore=shutil.ignore_patterns("*.safetensors", "bundle.json"))
    model = load_causal_lm(model_dir)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter += torch.randn_like(parameter) * parameter.std() * NOISE
    model.save_pretrained(target)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dirs", nargs="+", type=Path, help="Hugging Face directories")
    parser.add_argument("--perturb", action="store_true", help="measure each again with noise on its weights")
    parser.add_argument("--text", type=Path, help="calibrate on this text")
    parser.add_argument("--tokens", type=int, default=8192, help="of the calibration set")
    chosen = parser.parse_args()
    calibration = Calibration(text=chosen.text and chosen.text.absolute(), tokens=chosen.tokens)
    for model_dir in chosen.model_dirs:
        print(f"\n{model_dir}")
        measure(model_dir, calibration)
        if chosen.perturb:
            with tempfile.TemporaryDirectory() as folder:
                perturb(model_dir, Path(folder) / "perturbed")
                print(f"\n{model_dir}, perturbed by {NOISE:.0%}")
                measure(Path(folder) / "perturbed", calibration)


if __name__ == "__main__":
    main()
