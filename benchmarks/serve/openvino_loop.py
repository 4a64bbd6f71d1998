"""OpenVINO GenAI's bare loop (continuous batching) on a GGUF file, as a process: jobs and answers as in `genai_loop`."""

from __future__ import annotations

import argparse
import json
import sys
import time

import openvino_genai

from benchmarks.serve.streams import prompt_of


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 2  # GB
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.LLMPipeline(
        arguments.gguf, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=arguments.threads
    )
    timed(pipeline, 1, 64, 4)  # the first call also compiles
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(pipeline, **json.loads(line))), flush=True)


def run(
    pipeline: openvino_genai.LLMPipeline, rows: int, prompt_tokens: int, new_tokens: int
) -> dict[str, float]:
    """Time one static batch: what the first token of all takes, and the rest."""
    prefill_s = timed(pipeline, rows, prompt_tokens, 1)
    whole_s = timed(pipeline, rows, prompt_tokens, new_tokens) if new_tokens > 1 else prefill_s
    return {"prefill_s": prefill_s, "decode_s": max(whole_s - prefill_s, 1e-9)}


def timed(pipeline: openvino_genai.LLMPipeline, rows: int, prompt_tokens: int, new_tokens: int) -> float:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = new_tokens
    config.ignore_eos = True
    config.do_sample = False
    prompts = [prompt_of(prompt_tokens) for _ in range(rows)]
    begin = time.perf_counter()
    answered = pipeline.generate(prompts, config)
    took_s = time.perf_counter() - begin
    assert answered.perf_metrics.get_num_generated_tokens() == rows * new_tokens
    return took_s


if __name__ == "__main__":
    main()
