"""The bodies of what encoders with heads are asked: labels, scores, an order, an answer in a text.

/classify, /score, /rerank and /pooling as vLLM spells them, /rerank also as Jina and Cohere do, and /models/NAME as
Hugging Face's inference API does.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from serve.protocol.body import Body, Labels, ModelName, Truncation, disagree

MAX_TEXTS = 2048
MAX_DOCUMENTS = 1024

Texts = str | Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)]


class ClassifyRequest(Labels):
    """POST /classify: a label for each text."""

    input: Texts
    truncate_prompt_tokens: Truncation = None


class PoolingRequest(Labels):
    """POST /pooling: the probabilities of each token's labels."""

    no_op_values: ClassVar = {"encoding_format": "float"}

    input: Texts
    truncate_prompt_tokens: Truncation = None
    task: Literal["token_classify"] | None = Field(None, exclude=True)
    encoding_format: Literal["float"] | None = Field(None, exclude=True)


class ScoreRequest(Labels):
    """POST /score: how well each second text fits the first one of its pair, or the only first one."""

    text_1: Texts
    text_2: Texts
    truncate_prompt_tokens: Truncation = None

    @model_validator(mode="before")
    @classmethod
    def _as_vllm_spells_them(cls, data: Any) -> Any:
        """vLLM's other names: ``queries`` and ``documents`` or ``items``, ``data_1`` and ``data_2``."""
        if not isinstance(data, dict):
            return data
        for name, others in (("text_1", ("queries", "data_1")), ("text_2", ("documents", "items", "data_2"))):
            given = [one for one in others if one in data]
            if given and name not in data:
                data = {(name if key == given[0] else key): value for key, value in data.items()}
        return data

    @model_validator(mode="after")
    def _as_many(self) -> ScoreRequest:
        second = len(self.text_2) if isinstance(self.text_2, list) else 1
        if isinstance(self.text_1, list) and len(self.text_1) not in (1, second):
            disagree("text_2", "Give one text_1, or as many as text_2 has")
        return self

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """First and second texts."""
        second = self.text_2 if isinstance(self.text_2, list) else [self.text_2]
        first = self.text_1 if isinstance(self.text_1, list) else [self.text_1]
        return list(zip(first * len(second) if len(first) == 1 else first, second, strict=True))


def _text_of(document: Any) -> Any:
    """A document is a text, or an object with one."""
    if isinstance(document, dict) and set(document) == {"text"}:
        return document["text"]
    return document


class RerankRequest(Labels):
    """POST /rerank, /v1/rerank and /v2/rerank: documents in the order in which they fit a query."""

    query: str
    documents: list[
        Annotated[str, BeforeValidator(_text_of, json_schema_input_type=str | dict[str, str])]
    ] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    top_n: int | None = Field(None, ge=0, description="How many to return; 0, as null, returns all.")
    return_documents: bool | None = Field(None, description="Whether results repeat their document; they do.")
    truncate_prompt_tokens: Truncation = None
    max_tokens_per_doc: int | None = Field(
        None, ge=1, description="So many tokens of each document are read, and the rest left out."
    )


class Question(Body):
    """What is asked of a text."""

    question: str
    context: str


class TaskParameters(Body):
    """Those of Hugging Face's tasks that change anything here."""

    no_op_values: ClassVar = {"align_to_words": True, "handle_impossible_answer": False}

    aggregation_strategy: Literal["none", "simple"] | None = Field(
        None, description="Entities: neighbouring tokens of one kind as one, or every token."
    )
    ignore_labels: list[str] | None = Field(None, max_length=256)
    top_k: int | None = Field(None, ge=1, le=1024)
    max_answer_len: int | None = Field(None, ge=1, le=512, description="In tokens.")
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None


class TaskRequest(Labels):
    """POST /models/NAME: what a text says, in the words of Hugging Face's inference API; the model is in the path."""

    model: ModelName = Field("", description="As in the path.")
    inputs: Question | Texts
    parameters: TaskParameters | None = None
