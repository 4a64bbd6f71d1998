"""What vLLM gains from W8A8 and W4A16 on this GPU, by a model's shape: ``python -m benchmarks.compress.vllm_formats CONFIG_DIR``.

The weights are random, so that no model of that size has to be there: the kernels take as long. Prompts alone, then
tokens of many streams at once, in vLLM's own process, without HTTP; the best of some rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FORMATS = ("bfloat16", "w8a8", "w4a16")
STREAMS = (1, 16, 64, 256)
PROMPT_TOKENS, PREFILL_TOKENS, NEW_TOKENS = 64, 8192, 128
GROUP_SIZE = 128
MEMORY_SHARE = 0.85
IN_CHILD = (
    "import sys; from benchmarks.compress.vllm_formats import speeds; speeds(sys.argv[1], int(sys.argv[2]))"
)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config_dir", type=Path, help="config.json and a tokenizer")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=NUMBER", help="of the config")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    config = json.loads((chosen.config_dir / "config.json").read_text())
    config |= {key: json.loads(value) for key, _, value in (one.partition("=") for one in chosen.set)}
    labels = [f"prefill of {PREFILL_TOKENS}", *(f"{streams} streams" for streams in STREAMS)]
    print("tokens/s | " + " | ".join(labels), flush=True)
    first: list[float] = []
    for name in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            weights = shutil.ignore_patterns("*.safetensors")
            shutil.copytree(chosen.config_dir, directory, ignore=weights, dirs_exist_ok=True)
            said = config | {"dtype": "bfloat16"} | quantization(name)
            (directory / "config.json").write_text(json.dumps(said))
            command = [sys.executable, "-c", IN_CHILD, folder, str(chosen.rounds)]
            answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rates = json.loads(answer.stdout.splitlines()[-1])
        first = first or rates
        cells = [f"{rate:,.0f} ({rate / plain:.2f})" for rate, plain in zip(rates, first, strict=True)]
        print(f"{name} | " + " | ".join(cells), flush=True)


def quantization(name: str) -> dict[str, Any]:
    """What compressed-tensors says in ``config.json``, as ``compress`` leaves it."""
    if name == "bfloat16":
        return {}
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    scheme = preset_name_to_scheme(name, ["Linear"])
    assert scheme.weights
    if name == "w4a16":
        scheme.weights.group_size = GROUP_SIZE
    kind = "int-quantized" if name == "w8a8" else "pack-quantized"
    said = QuantizationConfig(
        config_groups={"group_0": scheme}, format=kind, ignore=["lm_head"], quantization_status="compressed"
    )
    return {"quantization_config": said.model_dump(mode="json", exclude_none=True)}


def speeds(directory: str, rounds: int) -> None:
    """Prints tokens/s of the prompts alone, then of each number of streams, as JSON."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(
        model=directory,
        load_format="dummy",
        max_model_len=PREFILL_TOKENS + NEW_TOKENS,
        max_num_batched_tokens=PREFILL_TOKENS,
        enable_prefix_caching=False,
        gpu_memory_utilization=MEMORY_SHARE,
        seed=0,
    )
    llm.apply_model(with_random_integers)
    draw = random.Random(0)

    def seconds(rows: int, prompt_tokens: int, new_tokens: int) -> float:
        prompts = [
            TokensPrompt(prompt_token_ids=[draw.randrange(1000, 40000) for _ in range(prompt_tokens)])
            for _ in range(rows)
        ]
        sampling = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        began = time.perf_counter()
        llm.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - began

    def rate(rows: int) -> float:
        """Of the tokens after the first, whose time is taken off."""
        first = min(seconds(rows, PROMPT_TOKENS, 1) for _ in range(rounds))
        whole = min(seconds(rows, PROMPT_TOKENS, NEW_TOKENS) for _ in range(rounds))
        return rows * (NEW_TOKENS - 1) / (whole - first)

    seconds(max(STREAMS), PROMPT_TOKENS, 8)
    prefill = PREFILL_TOKENS / min(seconds(1, PREFILL_TOKENS, 1) for _ in range(rounds))
    print(json.dumps([prefill, *(rate(rows) for rows in STREAMS)]))


def with_random_integers(model: Any) -> None:
    """vLLM's dummy weights are random where they are fractions; packed ones would be whatever lay in memory."""
    import torch

    for name, values in model.state_dict().items():
        if name.endswith((".weight", ".weight_packed")) and not values.is_floating_point():
            whole = torch.iinfo(values.dtype)
            values.random_(whole.min, whole.max)


if __name__ == "__main__":
    main()
