"""Start options of vLLM for one bundle on this machine."""

import json
import os
from pathlib import Path
from typing import Any

import psutil

from everlearn.memory import within_container
from everlearn.settings import Settings
from serve.tracing import traces_endpoint

KV_SHARE = 0.3
"""Share of the memory free at the start that keys and values may take, on a CPU. vLLM takes it all at once."""

KV_CONTEXTS = 8
"""So many full contexts are enough on a CPU: most requests are far shorter, and prefixes are shared."""


def environment(settings: Settings) -> dict[str, str]:
    """Variables for vLLM and the processes it starts: offline, silent to the outside, files under `home`."""
    cache = str(settings.directory("cache") / "vllm")
    return {
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": os.environ.get("OTEL_SERVICE_NAME", "everlearn-engine"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_PLUGINS": "everlearn_int4",
        "VLLM_CACHE_ROOT": cache,
        "VLLM_CONFIG_ROOT": cache,
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": "INFO"
        if settings.log_level == "debug"
        else "ERROR",  # it warns of our own flags
    }


def flags(bundle: Path, model: str, uds: Path, settings: Settings, draft: Path | None = None) -> list[str]:
    """vLLM's command line: this model, on this socket, with what the hardware is good at.

    `draft` is the bundle that guesses tokens.
    """
    from vllm.platforms import current_platform

    shared = [
        *("--model", str(bundle), "--served-model-name", model, "--uds", str(uds)),
        *("--load-format", "safetensors", "--max-model-len", "auto"),
        *("--enable-prefix-caching", "--enable-prompt-tokens-details"),
        *("--structured-outputs-config.backend", "guidance"),
        *("--scheduling-policy", "priority"),
        *("--middleware", "serve.engines.vllm.front.Front"),
        *("--shutdown-timeout", str(round(settings.serve.drain_timeout_s))),
        *("--disable-uvicorn-access-log", "--disable-fastapi-docs", "--uvicorn-log-level", "warning"),
        *("--tensor-parallel-size", str(settings.vllm.tensor_parallel)),
    ]
    if settings.vllm.speculative_tokens:
        guessing = speculation(settings.vllm.speculative_tokens, draft)
        shared += ["--speculative-config", json.dumps(guessing)]
    if endpoint := traces_endpoint():
        shared += ["--otlp-traces-endpoint", endpoint]
    return [*shared, *cpu_flags(bundle)] if current_platform.is_cpu() else shared


def speculation(tokens: int, draft: Path | None) -> dict[str, Any]:
    """How vLLM guesses ahead: by a small model, or by looking up what followed the last three or four tokens."""
    if draft:
        return {"method": "draft_model", "model": str(draft), "num_speculative_tokens": tokens}
    return {
        "method": "ngram",
        "num_speculative_tokens": tokens,
        "prompt_lookup_min": 3,
        "prompt_lookup_max": 4,
    }


def cpu_flags(bundle: Path) -> list[str]:
    """Eager, since compiling takes minutes; a type the cores compute in; a bounded share of the memory."""
    import torch

    able = torch.cpu.get_capabilities()
    config = json.loads((bundle / "config.json").read_text())
    bf16 = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    kv_bytes = kv_cache_bytes(config, 2 if bf16 else 4, within_container(psutil.virtual_memory().available))
    return [
        *("--enforce-eager", "--dtype", "bfloat16" if bf16 else "float32"),
        *("--kv-cache-memory-bytes", str(kv_bytes)),
    ]


def kv_cache_bytes(config: dict[str, Any], element_bytes: int, available_bytes: int) -> int:
    """Memory for keys and values: what `KV_CONTEXTS` full contexts take, or a share of what is free."""
    text = config.get("text_config", config)
    heads = text["num_attention_heads"]
    head_size = text.get("head_dim") or text["hidden_size"] // heads
    per_token = 2 * text["num_hidden_layers"] * (text.get("num_key_value_heads") or heads) * head_size
    context_bytes = per_token * element_bytes * text["max_position_embeddings"]
    return min(KV_CONTEXTS * context_bytes, int(available_bytes * KV_SHARE))
