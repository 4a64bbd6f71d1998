"""A GGUF file for llama.cpp of a Hugging Face directory; ``everlearn import`` reads it back. Run as a child process.

Names, the order of query and key rows, and metadata are those that llama.cpp's own converter writes.
"""

# pyright: basic
# gguf and torch tell strict rules too little of their types.

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.measure_decoder import held_windows, measure
from everlearn.child import answer
from everlearn.errors import Unsupported
from everlearn.progress import Progress
from everlearn.stops import stops_of
from train.evaluate import load_causal_lm, torch_logits

Encode = Callable[[str, Any], tuple[Any, Any]]
"""A tensor's name there and its float32 values → the bytes (rows, row bytes), and their gguf type."""

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
REORDERED = frozenset({"llama"})
"""Where llama.cpp has the two halves of a head's rotary pairs beside each other."""


def build(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Writes ``file`` from ``model_dir`` with ``type`` (f32, f16, q8_0 or q4_0), reads it back and measures that."""
    from everlearn.gguf_convert import convert

    model_dir, file = Path(request["model_dir"]), Path(request["file"])
    write_gguf(model_dir, file, plain(request["type"]), progress)
    again = Path(request["scratch"])
    convert({"file": str(file), "directory": str(again)}, progress)
    held = held_windows(model_dir, request["tokens"])
    return {"compared": measure(model_dir, held, torch_logits(load_causal_lm(again), held), progress)}


def plain(kind: str) -> Encode:
    """Every matrix in one type; vectors, and matrices that do not divide into its blocks, as float32 or float16."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quantize

    wanted = GGMLQuantizationType[kind.upper()]
    block = GGML_QUANT_SIZES[wanted][0]

    def encode(name: str, values: Any) -> tuple[Any, Any]:
        fits = values.ndim > 1 and values.shape[-1] % block == 0
        chosen = wanted if fits else GGMLQuantizationType.F16 if values.ndim > 1 else GGMLQuantizationType.F32
        if name in ("token_embd.weight", "output.weight") and wanted.name == "Q4_0" and fits:
            chosen = GGMLQuantizationType.Q8_0  # as llama.cpp, which gives the output layer more
        return quantize(values, chosen), chosen

    return encode


def write_gguf(model_dir: Path, file: Path, encode: Encode, progress: Progress) -> None:
    """Writes ``file`` whole or not at all. Raises Unsupported for an architecture or tokenizer not known here."""
    import gguf
    import numpy as np

    progress("loading the model", None)
    fields = tokenizer_fields(model_dir)
    model = load_causal_lm(model_dir)
    config = model.config
    name = ARCHITECTURES.get(type(model).__name__)
    if name is None or getattr(config, "attention_bias", False):
        known = ", ".join(ARCHITECTURES)
        raise Unsupported(f"{type(model).__name__} is not written as GGUF; {known} are")
    partial = file.with_name(f".{file.name}.partial")
    writer = gguf.GGUFWriter(str(partial), name)
    try:
        write_fields(writer, config, fields, model_dir)
        names = gguf.get_tensor_name_map(
            next(one for one, said in gguf.MODEL_ARCH_NAMES.items() if said == name), config.num_hidden_layers
        )
        state = model.state_dict()
        if config.tie_word_embeddings:
            state.pop("lm_head.weight", None)
        for done, (theirs, tensor) in enumerate(state.items(), start=1):
            ours = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
            if ours is None:
                raise Unsupported(f"GGUF has no name for {theirs}")
            values = (
                reordered(theirs, tensor.float().numpy(), config) if name in REORDERED else tensor.numpy()
            )
            data, kind = encode(ours, np.ascontiguousarray(values, dtype=np.float32))
            writer.add_tensor(ours, data, raw_dtype=kind)
            progress("encoding", done / len(state))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def write_fields(writer: Any, config: Any, fields: Mapping[str, Any], model_dir: Path) -> None:
    """The metadata of a decoder. Raises Unsupported for scaled rotary positions."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise Unsupported(f"rotary positions of type {rope['rope_type']} are not written as GGUF")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(model_dir.name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(fields["pre"])
    tokens = fields["tokens"]
    unused = [f"[PAD{at}]" for at in range(len(tokens), config.vocab_size)]
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([*fields["types"], *[5] * len(unused)])
    writer.add_token_merges(fields["merges"])
    stops = stops_of(model_dir)
    for name, value in (
        ("bos", config.bos_token_id),
        ("eos", stops.text_end),
        ("eot", next(iter(stops.turn_ends), None)),
        ("pad", config.pad_token_id),
    ):
        value = value[0] if isinstance(value, list) else value
        if value is not None:
            getattr(writer, f"add_{name}_token_id")(value)
    writer.add_add_bos_token(fields["adds_first"])
    if (model_dir / "chat_template.jinja").is_file():
        writer.add_chat_template((model_dir / "chat_template.jinja").read_text())


def reordered(name: str, weight: Any, config: Any) -> Any:
    """Query and key rows as llama.cpp has them: (heads, 2, half, in) becomes (heads, half, 2, in)."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[part] for part in heads if part in name), None)
    if count is None:
        return weight
    rest = weight.shape[1:]
    return weight.reshape(count, 2, -1, *rest).swapaxes(1, 2).reshape(weight.shape)


def tokenizer_fields(model_dir: Path) -> dict[str, Any]:
    """Tokens, types, merges, how text is split, and whether a first token is added.

    Raises Unsupported where it is no byte-level BPE whose splitting llama.cpp has a name for.
    """
    from tokenizers import Tokenizer

    said = json.loads((model_dir / "tokenizer.json").read_text())
    if said["model"]["type"] != "BPE":
        raise Unsupported(f"a {said['model']['type']} tokenizer is not written as GGUF; byte-level BPE is")
    added = {one["id"]: one for one in said["added_tokens"]}
    by_id = {at: token for token, at in said["model"]["vocab"].items()}
    by_id |= {at: one["content"] for at, one in added.items()}
    if sorted(by_id) != list(range(len(by_id))):
        raise Unsupported("the tokenizer's ids have gaps, which GGUF does not")
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    return {
        "pre": splitting(said),
        "tokens": [by_id[at] for at in range(len(by_id))],
        "types": [1 if at not in added else 3 if added[at]["special"] else 4 for at in range(len(by_id))],
        "merges": [one if isinstance(one, str) else " ".join(one) for one in said["model"]["merges"]],
        "adds_first": len(tokenizer.encode("a").ids)
        > len(tokenizer.encode("a", add_special_tokens=False).ids),
    }


def splitting(said: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer.json splits text before the merges. Raises Unsupported."""
    from everlearn.gguf_tokenizer import PATTERNS, build_tokenizer

    steps = said["pre_tokenizer"]
    steps = steps["pretokenizers"] if steps and steps["type"] == "Sequence" else [steps]
    for name in PATTERNS:
        fields = {
            "tokenizer.ggml.tokens": ["a"],
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.pre": name,
        }
        ours = json.loads(build_tokenizer(fields).to_str())["pre_tokenizer"]["pretokenizers"]
        if [meant(one) for one in ours] == [meant(one) for one in steps]:
            return name
    raise Unsupported(f"llama.cpp has no name known here for the way this tokenizer splits text: {steps}")


def meant(step: Mapping[str, Any] | None) -> dict[str, Any]:
    """A pre-tokenizer's options without those that move only offsets."""
    return {key: value for key, value in (step or {}).items() if key not in ("trim_offsets", "invert")}


if __name__ == "__main__":
    answer(build)
