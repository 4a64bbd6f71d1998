"""What a bundle's model does, in the words of Hugging Face and vLLM: read from config.json, and loaded by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from everlearn.errors import Unsupported

Task = Literal[
    "generate",
    "embed",
    "fill_mask",
    "text2text",
    "classify",
    "token_classify",
    "question_answer",
    "score",
    "image_text",
]

TASK_WORDS: Mapping[Task, str] = {
    "generate": "a text model",
    "embed": "an encoder",
    "fill_mask": "a masked language model",
    "text2text": "an encoder-decoder",
    "classify": "a classifier",
    "token_classify": "a token classifier",
    "question_answer": "a model that finds answers",
    "score": "a model that scores pairs",
    "image_text": "a model of images and texts",
}
"""As in a sentence."""

AUTO_CLASSES: Mapping[Task, str] = {
    "generate": "AutoModelForCausalLM",
    "embed": "AutoModel",
    "fill_mask": "AutoModelForMaskedLM",
    "text2text": "AutoModelForSeq2SeqLM",
    "classify": "AutoModelForSequenceClassification",
    "token_classify": "AutoModelForTokenClassification",
    "question_answer": "AutoModelForQuestionAnswering",
    "score": "AutoModelForSequenceClassification",
    "image_text": "AutoModel",
}
"""The class of transformers that loads it."""

HEADED: tuple[Task, ...] = ("classify", "score", "token_classify", "question_answer")
"""Those of encoders with a head."""

ENCODER_DECODERS = frozenset({"t5", "mt5", "umt5", "longt5", "bart", "mbart", "pegasus", "m2m_100", "marian"})
"""Model types of text alone; …ForConditionalGeneration is what models of speech and of images are called, too."""

_HEADS: Mapping[str, Task] = {
    "ForCausalLM": "generate",
    "LMHeadModel": "generate",
    "ForMaskedLM": "fill_mask",
    "ForTokenClassification": "token_classify",
    "ForQuestionAnswering": "question_answer",
    "CLIPModel": "image_text",
}


def task_of(architecture: str, config: Mapping[str, Any], *, has_modules: bool) -> Task:
    """The task of a model, by the first of config.json's ``architectures``.

    ``has_modules``: whether it is laid out by sentence-transformers (modules.json), whatever head it was trained with.
    Raises Unsupported naming what is taken.
    """
    head: Task | None = next((task for end, task in _HEADS.items() if architecture.endswith(end)), None)
    if head == "generate":
        return "generate"
    if architecture.endswith("ForSequenceClassification"):
        return "classify" if _labels(config) > 1 else "score"
    if has_modules:
        return "embed"
    if head:
        return head
    if (
        architecture.endswith(("ForConditionalGeneration", "MTModel"))
        and config.get("model_type") in ENCODER_DECODERS
    ):
        return "text2text"
    if architecture.endswith("Model"):
        return "embed"
    raise Unsupported(
        f"config.json says {architecture or 'no architecture'}: models that generate text (…ForCausalLM), encoders "
        "(…Model), encoders with a head (…ForMaskedLM, …ForSequenceClassification, …ForTokenClassification, "
        f"…ForQuestionAnswering) and encoder-decoders of text ({', '.join(sorted(ENCODER_DECODERS))}) are taken"
    )


def refuse_task(ref: str, task: Task, taken: Collection[Task], what: str) -> None:
    """Raises Unsupported where ``what``, as in "what takes …", is not for models of this task."""
    if task not in taken:
        kinds = " or ".join(TASK_WORDS[one] for one in TASK_WORDS if one in taken)
        raise Unsupported(f"{ref} is {TASK_WORDS[task]} (task {task}); {what} takes {kinds}", param="ref")


def _labels(config: Mapping[str, Any]) -> int:
    """As many as transformers makes of it: ``num_labels`` is written as ``id2label``, and two where neither is."""
    named = config.get("id2label")
    if isinstance(named, Mapping):
        return len(named)  # pyright: ignore[reportUnknownArgumentType]
    said = config.get("num_labels")
    return said if isinstance(said, int) else 2
