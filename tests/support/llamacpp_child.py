"""The child of ``llamacpp``: asks llama.cpp's server and prints what it says. It imports no torch: that takes longer."""

from __future__ import annotations

import json
import os
import sys

import httpx
import xllamacpp


def main() -> None:
    request = json.loads(sys.stdin.read())
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_parallel = 1
    params.n_ctx = request["context"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    server = xllamacpp.Server(params)
    vocab = 0
    rows = []
    with httpx.Client(base_url=server.listening_address, timeout=60) as client:
        for prompt in request["prompts"]:
            vocab = vocab or client.get("/v1/models").json()["data"][0]["meta"]["n_vocab"]
            body = {
                "prompt": prompt,
                "n_predict": 1,
                "n_probs": vocab,
                "temperature": 0,
                "cache_prompt": False,
            }
            said = client.post("/completion", json=body).json()
            row = [0.0] * vocab
            for one in said.get("completion_probabilities", [{}])[0].get("top_logprobs", []):
                row[one["id"]] = one["logprob"]
            rows.append(row if any(row) else None)
        ids = [
            client.post(
                "/tokenize", json={"content": text, "add_special": False, "parse_special": True}
            ).json()["tokens"]
            for text in request["texts"]
        ]
    print(json.dumps({"logprobs": rows, "ids": ids}), flush=True)
    os._exit(0)  # its threads do not end by themselves


if __name__ == "__main__":
    main()
