"""The families of models that are made from scratch: what each is for, and what it wants.

A recipe's key ``architecture.family`` is validated by this table, so it imports neither torch nor pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from everlearn.bundles.tasks import Task

FamilyName = Literal[
    "llama",
    "qwen",
    "gpt2",
    "gpt-neox",
    "deepseek",
    "bert",
    "roberta",
    "distilbert",
    "modernbert",
    "t5",
    "clip",
]


@dataclass(frozen=True)
class Family:
    """``model``: transformers' class. ``tokenizer``: the kind that its models have.

    ``gated``: whether a feed-forward layer has three matrices, of which one is a gate. ``grouped``: whether several
    heads may share keys and values.
    """

    task: Task
    model: str
    paper: str
    tokenizer: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    gated: bool = True
    grouped: bool = False


FAMILIES: Mapping[FamilyName, Family] = {
    "llama": Family("generate", "LlamaForCausalLM", "arXiv 2302.13971", grouped=True),
    "qwen": Family("generate", "Qwen3ForCausalLM", "arXiv 2505.09388", grouped=True),
    "gpt2": Family("generate", "GPT2LMHeadModel", "Radford et al., 2019", gated=False),
    "gpt-neox": Family("generate", "GPTNeoXForCausalLM", "arXiv 2204.06745", gated=False),
    "deepseek": Family("generate", "DeepseekV3ForCausalLM", "arXiv 2412.19437"),
    "bert": Family("fill_mask", "BertForMaskedLM", "arXiv 1810.04805", "wordpiece", gated=False),
    "roberta": Family("fill_mask", "RobertaForMaskedLM", "arXiv 1907.11692", "wordpiece", gated=False),
    "distilbert": Family("fill_mask", "DistilBertForMaskedLM", "arXiv 1910.01108", "wordpiece", gated=False),
    "modernbert": Family("fill_mask", "ModernBertForMaskedLM", "arXiv 2412.13663", "wordpiece"),
    "t5": Family("text2text", "T5ForConditionalGeneration", "arXiv 1910.10683 and 2002.05202", "unigram"),
    "clip": Family("image_text", "CLIPModel", "arXiv 2103.00020", "wordpiece", gated=False),
}
