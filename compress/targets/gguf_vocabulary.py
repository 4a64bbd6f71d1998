"""A tokenizer.json as the tokens, scores, merges and special ids of a GGUF file."""

# pyright: basic
# gguf and tokenizers tell strict rules too little of their types.

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everlearn.bundles.contents import read_json_object
from everlearn.chat.stops import stops_of
from everlearn.errors import Unsupported
from everlearn.importing.gguf_tokenizer import (
    CONTROL,
    NORMAL,
    PATTERNS,
    SPACE,
    USER_DEFINED,
    build_tokenizer,
    scored_merges,
)

UNKNOWN, UNUSED, BYTE = 2, 5, 6
ENDS = ("eos", "eot", "eom")
"""llama.cpp's names for the tokens that end a text, a turn and a message; it goes on behind none of them."""
MAX_SCORES = 2**24
"""Scores are float32: more of them than whole numbers that it holds would not keep their order."""


@dataclass(frozen=True)
class Vocabulary:
    """``fields``: as :func:`tokenizer_fields` gives them; ``size``: rows of the embedding."""

    fields: Mapping[str, Any]
    size: int

    def write(self, writer: Any, model_dir: Path) -> None:
        """All of llama.cpp's keys of a tokenizer."""
        import gguf

        fields, tokens = self.fields, self.fields["tokens"]
        unused = [f"[PAD{at}]" for at in range(len(tokens), self.size)]
        writer.add_tokenizer_model(fields["model"])
        writer.add_tokenizer_pre(fields["pre"])
        writer.add_token_list([*tokens, *unused])
        writer.add_token_types([*fields["types"], *[UNUSED] * len(unused)])
        if fields["model"] == "llama":
            writer.add_token_scores([*fields["scores"], *[-1000.0] * len(unused)])
        else:
            writer.add_token_merges(fields["merges"])
        writer.add_add_space_prefix(fields["prefix"])
        special = gguf.SpecialVocab(model_dir, n_vocab=self.size)
        special.add_special_token["bos"] = fields["adds_first"]
        special.add_special_token.pop("sep", None)
        ids = special_ids(model_dir)
        special.special_token_ids = {
            kind: at for kind, at in special.special_token_ids.items() if kind not in ENDS
        } | ids
        special.add_to_gguf(writer, quiet=True)


def special_ids(model_dir: Path) -> dict[str, int]:
    """What starts, fills and ends a text: of several ends, llama.cpp has a place for three. Raises Unsupported."""
    stops = stops_of(model_dir)
    ends = list(
        dict.fromkeys(one for one in (stops.text_end, *stops.turn_ends, *stops.ids) if one is not None)
    )
    if len(ends) > len(ENDS):
        raise Unsupported(f"the ids {ends} end a turn; a GGUF file has room for {len(ENDS)}")
    said = read_json_object(model_dir / "config.json")
    return dict(zip(ENDS, ends, strict=False)) | {
        kind: said[f"{kind}_token_id"] for kind in ("bos", "pad") if said.get(f"{kind}_token_id") is not None
    }


def vocabulary_of(model_dir: Path, size: int) -> Vocabulary:
    """Raises Unsupported where llama.cpp has no such tokenizer."""
    fields = tokenizer_fields(model_dir)
    if len(fields["tokens"]) > size:
        raise Unsupported(f"the tokenizer has {len(fields['tokens'])} tokens, and the embedding {size} rows")
    return Vocabulary(fields, size)


def tokenizer_fields(model_dir: Path) -> dict[str, Any]:
    """Tokens, types, merges or scores, how text is split, and whether a first token is added.

    Raises Unsupported where it is neither a byte-level BPE whose splitting llama.cpp has a name for, nor SentencePiece's.
    """
    from tokenizers import Tokenizer

    said = json.loads((model_dir / "tokenizer.json").read_text())
    if said["model"]["type"] != "BPE":
        raise Unsupported(f"a {said['model']['type']} tokenizer is not written as GGUF; BPE is")
    added = {one["id"]: one for one in said["added_tokens"]}
    by_id = {at: token for token, at in said["model"]["vocab"].items()}
    by_id |= {at: one["content"] for at, one in added.items()}
    if sorted(by_id) != list(range(len(by_id))):
        raise Unsupported("the tokenizer's ids are not contiguous: GGUF requires contiguous token ids")
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    types = [
        NORMAL if at not in added else CONTROL if added[at]["special"] else USER_DEFINED
        for at in range(len(by_id))
    ]
    first = len(tokenizer.encode("a").ids) > len(tokenizer.encode("a", add_special_tokens=False).ids)
    fields = {
        "tokens": [by_id[at] for at in range(len(by_id))],
        "types": types,
        "merges": [one if isinstance(one, str) else " ".join(one) for one in said["model"]["merges"]],
        "adds_first": first,
        "model": "gpt2",
        "prefix": False,
    }
    if said["model"].get("byte_fallback"):
        return fields | sentencepiece_fields(said, fields)
    return fields | {"pre": splitting(said)}


def sentencepiece_fields(said: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Scores that give the same merges, of a tokenizer that was SentencePiece's. Raises Unsupported."""
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    first = {"type": "Prepend", "prepend": SPACE}
    known = {
        json.dumps(spaces): False,
        json.dumps({"type": "Sequence", "normalizers": [first, spaces]}): True,
    }
    prefix = known.get(json.dumps(said["normalizer"]))
    before = said["pre_tokenizer"]
    if prefix is None or (before and (before["type"], before.get("pattern")) != ("Split", {"String": " "})):
        raise Unsupported(
            f"llama.cpp has no name for the way this tokenizer prepares text: {said['normalizer']}, {before}"
        )
    merges = [
        tuple(one.split(" ", 1)) if isinstance(one, str) else tuple(one) for one in said["model"]["merges"]
    ]
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    if len(merges) > MAX_SCORES:
        raise Unsupported(f"the tokenizer has {len(merges)} merges; scores keep the order of {MAX_SCORES}")
    tokens, types = fields["tokens"], list(fields["types"])
    unknown = said["model"].get("unk_token")
    for at, token in enumerate(tokens):
        if token == unknown:
            types[at] = UNKNOWN
        elif types[at] == NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[at] = BYTE
    scores = [float(-ranks.get(token, len(merges))) for token in tokens]
    as_read = {"tokens": tokens, "token_type": types, "scores": scores}
    again = scored_merges({f"tokenizer.ggml.{key}": value for key, value in as_read.items()})
    if set(again) != set(merges):
        raise Unsupported("the tokenizer's merges are not those of scores, as SentencePiece has them")
    return {"model": "llama", "pre": "default", "prefix": prefix, "types": types, "scores": scores}


def splitting(said: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer.json splits text before the merges. Raises Unsupported."""
    steps = said["pre_tokenizer"]
    steps = steps["pretokenizers"] if steps and steps["type"] == "Sequence" else [steps]
    for name in PATTERNS:
        fields = {
            "tokenizer.ggml.model": "gpt2",
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
