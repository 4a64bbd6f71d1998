"""Compare a loader's findings with the model: nothing may be missing, misshapen or left over.

transformers fills what is missing with random numbers, other ones at each load, and drops what is left over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from everlearn.errors import InvalidInput

OLD_BUFFERS = re.compile(r".*(rotary_emb\.inv_freq|attn\.bias|attention\.bias|masked_bias|position_ids)")
"""Constants that older files store and newer code computes: masks, and the frequencies and numbers of positions."""
POOLER = "pooler"
"""Part of an encoder that no embedding comes through; files of encoders that were trained otherwise lack it."""
BESIDE_THE_HEAD = re.compile(r"(.*\.)?(pooler|seq_relationship)\..*")
"""What BERT's files hold for predicting the next sentence, which no other head reads."""


def refuse_differences(
    info: Mapping[str, Any], encoder: Any = None, *, head: bool = False, new_head_of: Any = None
) -> None:
    """``info``: of ``from_pretrained(…, output_loading_info=True, ignore_mismatched_sizes=True)``.

    ``encoder``: the model where it is the body of one, whose files may have the head that it was trained with.
    ``head``: whether it is an encoder with a head, whose files may have what BERT predicts the next sentence with.
    ``new_head_of``: the model, where its head may be missing from the files, and another one be there.
    Raises InvalidInput naming the first tensor that is missing, of another shape, or left over.
    """
    missing, surplus = set(info["missing_keys"]), {one for one in info["unexpected_keys"] if not is_old(one)}
    if encoder is not None:
        missing = {one for one in missing if not one.startswith(POOLER)}
        surplus = of_body(surplus, encoder)
    if head:
        surplus = {one for one in surplus if not BESIDE_THE_HEAD.fullmatch(one)}
    if new_head_of is not None:
        body = f"{new_head_of.base_model_prefix}."
        missing = {one for one in missing if one.startswith(body) and not one.startswith(f"{body}{POOLER}.")}
        surplus = {one for one in surplus if one.startswith(body)}
    if missing:
        raise InvalidInput(
            f"the tensor {min(missing)}{and_more(missing)} is missing from the weights: by config.json the model has it, "
            "and random numbers would stand in its place",
            param=min(missing),
        )
    for name, stored, expected in sorted(info["mismatched_keys"]):
        if new_head_of is not None and not name.startswith(f"{new_head_of.base_model_prefix}."):
            continue  # another number of labels
        raise InvalidInput(
            f"the tensor {name} has the shape {list(stored)}; by config.json it is {list(expected)}",
            param=name,
        )
    if surplus:
        raise InvalidInput(
            f"the weights have a tensor {min(surplus)}{and_more(surplus)}, which the model of config.json has not: "
            "it would be left out",
            param=min(surplus),
        )


def is_old(name: str) -> bool:
    """Whether this is one of :data:`OLD_BUFFERS`."""
    return OLD_BUFFERS.fullmatch(name) is not None


def of_body(names: Iterable[str], encoder: Any) -> set[str]:
    """Those of ``names`` that are of a part that this body has, its pooler apart; the others are of a head."""
    parts = {name for name, _ in encoder.named_children()} - {POOLER}
    prefix = f"{encoder.base_model_prefix}."
    return {name for name in names if name.removeprefix(prefix).partition(".")[0] in parts}


def and_more(names: set[str]) -> str:
    """How many others there are."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
