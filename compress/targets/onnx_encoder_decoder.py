"""An encoder-decoder as two ONNX graphs that keep keys and values. Run as a child process.

``encoder_model.onnx`` reads a source once and says what each layer of the decoder will look up in it: keys and values of
its cross attention. ``decoder_model.onnx`` takes one token for each row, these, and the keys and values of the tokens
before it (none at first). Inputs and outputs are named as optimum names them. So the decoder's weights are there once,
and no token takes another graph than the others.

Not through optimum's own exporter: optimum-onnx 0.1.0 needs transformers below 4.58, which reads a T5 that transformers 5
saved as another model: it scales the decoder's output by ``d_model**-0.5`` where ``scale_decoder_outputs`` is false, and says
nothing of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.measure.parity import Drifted
from compress.sentence_encoder import probe_texts
from compress.targets.onnx_encoder import OPSET, SAME_LOGITS, quantize, write_tokenizer
from everlearn.cpu_features import make_exact
from everlearn.errors import Unsupported
from everlearn.processes.child import answer
from everlearn.progress import Progress
from train.models.load import load_model

ENCODER, DECODER = "encoder_model.onnx", "decoder_model.onnx"
WITHOUT_POSITIONS = 512
"""Tokens of a source and of an answer where config.json has no limit, as T5's: those it was trained on."""
SOURCE_TOKENS, ANSWER_TOKENS = 64, 24
"""Of what is measured."""


class Source(nn.Module):
    """From a source to the keys and values of the decoder's cross attention, those of each layer in turn."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """ids, mask: int64 (batch, seq); returns float32 (batch, heads, seq, head) each.

        The decoder makes them in its first step; what else that computes is not in the graph.
        """
        from transformers import DynamicCache, EncoderDecoderCache

        hidden = self.body.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        run_decoder(self.body, ids[:, :1], hidden, mask, cache)
        return kept(cache.cross_attention_cache)


class Step(nn.Module):
    """From one token of each row, and what was before it, to the next token's logits."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """ids: int64 (batch, 1); mask: of the source, int64 (batch, seq); past: keys and values of each layer's own
        attention, (batch, heads, past, head), then of its cross attention, (batch, heads, seq, head).

        Returns logits (batch, 1, vocab), and the first half of ``past`` with one token more.
        """
        from transformers import DynamicCache, EncoderDecoderCache

        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        layers, half = len(past) // 4, len(past) // 2
        for layer in range(layers):
            cache.self_attention_cache.update(past[2 * layer], past[2 * layer + 1], layer)
            cache.cross_attention_cache.update(past[half + 2 * layer], past[half + 2 * layer + 1], layer)
            cache.is_updated[layer] = True
        hidden = mask.unsqueeze(-1).to(torch.float32).expand(-1, -1, self.body.config.d_model)  # not read
        logits = run_decoder(self.body, ids, hidden, mask, cache)
        return logits, *kept(cache.self_attention_cache)


def run_decoder(body: Any, ids: Tensor, hidden: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """Logits (batch, tokens, vocab), with new keys and values in ``cache``."""
    from transformers.modeling_outputs import BaseModelOutput

    encoded = BaseModelOutput(last_hidden_state=hidden)  # pyright: ignore[reportArgumentType]
    said = body(
        encoder_outputs=encoded,
        attention_mask=mask,
        decoder_input_ids=ids,
        past_key_values=cache,
        use_cache=True,
    )
    return said.logits


def kept(cache: Any) -> tuple[Tensor, ...]:
    """Keys and values of each layer."""
    return tuple(one for layer in cache.layers for one in (layer.keys, layer.values))


def build_onnx_encoder_decoder(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Writes both graphs, tokenizer.json and the configs; returns how, and the metrics."""
    model_dir, directory = Path(request["model_dir"]), Path(request["directory"])
    refuse_wordpiece(model_dir)
    write_tokenizer(model_dir, directory)
    longest = write_config(model_dir, directory)
    progress("loading the model", None)
    body = load_model(model_dir, "text2text")
    progress("exporting the graphs", None)
    trace(body, directory)
    progress("comparing with torch", None)
    sources, answers = probes(body, model_dir, longest)
    wanted = torch_logits(body, sources, answers)
    near = compare(session_logits(directory, sources, answers), wanted)
    if not near["logits_difference"] <= SAME_LOGITS * max(1.0, near["logits_range"]):
        raise Drifted(
            f"a logit of the graphs in float32 is {near['logits_difference']:.4f} from torch's; at most "
            f"{SAME_LOGITS * max(1.0, near['logits_range']):.4f} is accepted, so they are not this model. Nothing was "
            "registered; docs/supported-architectures.md lists what works"
        )
    if request["precision"] == "int8":
        progress("quantizing", None)
        for graph in (ENCODER, DECODER):
            quantize(directory / graph)
        near = compare(session_logits(directory, sources, answers), wanted)
    return {"opset": OPSET, "max_length": longest, "metrics": near}


def write_config(model_dir: Path, directory: Path) -> int:
    """The parent's configs, with ``max_length``: the tokens that a source, and an answer, may have."""
    config = json.loads((model_dir / "config.json").read_text())
    limit = int(config.get("max_position_embeddings") or config.get("n_positions") or WITHOUT_POSITIONS)
    (directory / "config.json").write_text(json.dumps(config | {"max_length": limit}, indent=2))
    for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (model_dir / name).is_file():
            shutil.copyfile(model_dir / name, directory / name)
    return limit


def refuse_wordpiece(model_dir: Path) -> None:
    """Raises Unsupported for tokens that become text only together: an answer is streamed token by token."""
    said = json.loads((model_dir / "tokenizer.json").read_text())
    if said["model"].get("type") == "WordPiece":
        raise Unsupported(
            "tokenizer.json is WordPiece, whose tokens do not say where words begin: answers take byte-level BPE or Unigram"
        )


def trace(body: Any, directory: Path) -> None:
    """Both graphs, with free batch and lengths."""
    body.set_attn_implementation("eager")
    ids = torch.full((2, 7), 3)
    mask = torch.ones_like(ids)
    source, step = Source(body).eval(), Step(body).eval()
    options: dict[str, Any] = {"opset_version": OPSET, "dynamo": False}
    with torch.inference_mode():
        cross = source(ids, mask)
        layers = range(len(cross) // 2)
        past, present = names("past_key_values", "decoder", layers), names("present", "decoder", layers)
        looked_up, given = names("present", "encoder", layers), names("past_key_values", "encoder", layers)
        tokens = {0: "batch", 1: "seq"}
        torch.onnx.export(
            source,
            (ids, mask),
            str(directory / ENCODER),
            input_names=["input_ids", "attention_mask"],
            output_names=looked_up,
            dynamic_axes={
                "input_ids": tokens,
                "attention_mask": tokens,
                **{name: {0: "batch", 2: "seq"} for name in looked_up},
            },
            **options,
        )
        _, *before = step(ids[:, :1], mask, *(one[:, :, :0] for one in cross), *cross)
        torch.onnx.export(
            step,
            (ids[:, :1], mask, *before, *cross),
            str(directory / DECODER),
            input_names=["input_ids", "encoder_attention_mask", *past, *given],
            output_names=["logits", *present],
            dynamic_axes={
                "input_ids": {0: "batch"},
                "encoder_attention_mask": tokens,
                "logits": {0: "batch"},
                **{name: {0: "batch", 2: "past"} for name in past},
                **{name: {0: "batch", 2: "seq"} for name in given},
                **{name: {0: "batch", 2: "total"} for name in present},
            },
            **options,
        )


def names(when: str, side: str, layers: range) -> list[str]:
    """Of keys and values, as optimum has them."""
    return [f"{when}.{layer}.{side}.{kind}" for layer in layers for kind in ("key", "value")]


def probes(body: Any, model_dir: Path, longest: int) -> tuple[list[list[int]], list[list[int]]]:
    """Sources from the held-out text, and the parent's own answers to them, which begin with its start token."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.enable_truncation(min(SOURCE_TOKENS, longest))
    sources = [one.ids for one in tokenizer.encode_batch(probe_texts()[::4])]
    answers: list[list[int]] = []
    for ids in sources:
        with torch.inference_mode():
            said = body.generate(
                torch.tensor([ids]),
                max_new_tokens=min(ANSWER_TOKENS, longest - 1),
                do_sample=False,
                num_beams=1,
            )
        answers.append(said[0].tolist())
    return sources, answers


def torch_logits(body: Any, sources: list[list[int]], answers: list[list[int]]) -> list[np.ndarray]:
    """Of each answer's tokens but the first, given those before them: float32 (tokens, vocab)."""
    with torch.inference_mode():
        return [
            body(
                input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([answer[:-1]])
            ).logits[0].numpy()
            for ids, answer in zip(sources, answers, strict=True)
        ]  # fmt: skip


def session_logits(directory: Path, sources: list[list[int]], answers: list[list[int]]) -> list[np.ndarray]:
    """The same by both graphs, token by token."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    make_exact(options)
    encoder, decoder = (
        onnxruntime.InferenceSession(str(directory / graph), options, providers=["CPUExecutionProvider"])
        for graph in (ENCODER, DECODER)
    )
    inputs = [one.name for one in decoder.get_inputs()]
    past_names = [name for name in inputs if ".decoder." in name]
    heads = {
        one.name: (one.shape[1], one.shape[3]) for one in decoder.get_inputs() if ".decoder." in one.name
    }
    found: list[np.ndarray] = []
    for ids, said in zip(sources, answers, strict=True):
        source = np.array([ids], np.int64)
        mask = np.ones_like(source)
        cross = encoder.run(None, {"input_ids": source, "attention_mask": mask})
        feeds = dict(zip([name for name in inputs if ".encoder." in name], cross, strict=True))
        past = [np.zeros((1, heads[name][0], 0, heads[name][1]), np.float32) for name in past_names]
        rows: list[np.ndarray] = []
        for token in said[:-1]:
            given = {"input_ids": np.array([[token]], np.int64), "encoder_attention_mask": mask}
            logits, *past = decoder.run(None, given | feeds | dict(zip(past_names, past, strict=True)))
            rows.append(np.asarray(logits)[0, 0])
        found.append(np.stack(rows))
    return found


def compare(ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict[str, Any]:
    """As :func:`compress.headed_encoder.compare_predictions`; a prediction is an answer's next token."""
    our, their = np.concatenate(ours).astype(np.float64), np.concatenate(theirs).astype(np.float64)

    def logs(logits: np.ndarray) -> np.ndarray:
        shifted = logits - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    divergence = (np.exp(logs(their)) * (logs(their) - logs(our))).sum(-1)
    return {
        "prediction_divergence": round(max(0.0, float(divergence.mean())), 6),
        "prediction_agreement": round(float((our.argmax(-1) == their.argmax(-1)).mean()), 4),
        "logits_difference": round(float(np.abs(our - their).max()), 6),
        "logits_range": round(float(np.abs(their).max()), 3),
        "predictions": len(divergence),
    }


if __name__ == "__main__":
    answer(build_onnx_encoder_decoder)
