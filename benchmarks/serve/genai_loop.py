"""onnxruntime-genai's bare loop as a process: one JSON job per line in, its times as one JSON line out.

A job is {"rows", "prompt_tokens", "new_tokens"}: a static batch of random prompts, decoded greedily to the end.
The answer is {"prefill_s", "decode_s"}. No server, no sampling, no text: what the library can do at best.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as og


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = og.Model(str(with_threads(arguments.bundle, arguments.threads, Path(directory))))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(model, **json.loads(line))), flush=True)


def with_threads(bundle: Path, threads: int, directory: Path) -> Path:
    """A view of the bundle whose configuration names the thread count."""
    for file in bundle.iterdir():
        if file.name != "genai_config.json":
            (directory / file.name).symlink_to(file.resolve())
    config = json.loads((bundle / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    (directory / "genai_config.json").write_text(json.dumps(config))
    return directory


def run(model: og.Model, rows: int, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
    """Time one static batch."""
    length = prompt_tokens + new_tokens
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, batch_size=rows, min_length=length, max_length=length)
    prompts = np.random.default_rng().integers(1000, 40000, (rows, prompt_tokens), dtype=np.int32)
    generator = og.Generator(model, params)
    begin = time.perf_counter()
    generator.append_tokens(prompts)
    generator.generate_next_token()
    prefilled = time.perf_counter()
    for _ in range(new_tokens - 1):
        generator.generate_next_token()
    return {"prefill_s": prefilled - begin, "decode_s": time.perf_counter() - prefilled}


if __name__ == "__main__":
    main()
