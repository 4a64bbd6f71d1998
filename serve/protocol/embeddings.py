"""The body of OpenAI's embeddings; of models of images and texts, also as vLLM and Jina spell it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from serve.protocol.body import Body, Labels, Truncation, disagree, string_or_list
from serve.protocol.completions import Prompt, Tokens

MAX_INPUTS = 2048


def _no_address(value: str) -> str:
    if "://" in value[:32]:
        raise PydanticCustomError(
            "not_fetched",
            "Nothing is fetched: send the image itself, as 'data:image/png;base64,…', not its address",
        )
    return value


Encoded = Annotated[
    str,
    AfterValidator(_no_address),
    Field(description="A data URL (data:image/png;base64,…), or base64 alone."),
]


class ImageInput(Body):
    """An image, as Jina spells it."""

    image: Encoded


class TextInput(Body):
    """A text, as Jina spells it."""

    text: str


class ImageUrl(Body):
    """Where an image is: in this URL itself."""

    no_op_values: ClassVar = {"detail": "auto"}

    url: Encoded


class ImagePart(Body):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(Body):
    """A text in a message."""

    type: Literal["text"]
    text: str


class EmbeddedMessage(Body):
    """One message with one image or one text, as vLLM asks of CLIP's kind."""

    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[
            list[Annotated[ImagePart | TextPart, Discriminator("type")]],
            Field(min_length=1, max_length=1),
            Tag("list"),
        ],
        Discriminator(string_or_list),
    ]


def _input_kind(value: Any) -> str:
    return "parts" if isinstance(value, list) and any(isinstance(one, dict) for one in value) else "prompt"


def _part_kind(value: Any) -> str:
    if isinstance(value, dict):
        return "an image" if "image" in value else "a text"
    return "a string"


Part = Annotated[
    Annotated[str, Tag("a string")]
    | Annotated[ImageInput, Tag("an image")]
    | Annotated[TextInput, Tag("a text")],
    Discriminator(_part_kind),
]
Input = Annotated[
    Annotated[Prompt, Tag("prompt")]
    | Annotated[list[Part], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True), Tag("parts")],
    Discriminator(_input_kind),
]


class EmbeddingRequest(Labels):
    """POST /v1/embeddings."""

    no_op_values: ClassVar = {"embedding_type": "float", "normalized": True}
    """Of Jina's."""

    input: Input | None = Field(
        None, description="A text, texts, or objects with a text or an image each: one vector for each."
    )
    messages: list[EmbeddedMessage] | None = Field(
        None, min_length=1, max_length=1, description="In place of input: one message, one vector."
    )
    encoding_format: Literal["float", "base64"] | None = None
    truncate_prompt_tokens: Truncation = None

    @model_validator(mode="after")
    def _one_of_them(self) -> EmbeddingRequest:
        if (self.input is None) == (self.messages is None):
            disagree("input", "Give input, or messages in its place")
        return self

    @property
    def inputs(self) -> list[str | ImageInput | Tokens]:
        """What gets a vector each, in order."""
        if self.messages:
            content = self.messages[0].content
            part = content if isinstance(content, str) else content[0]
            return [ImageInput(image=part.image_url.url) if isinstance(part, ImagePart) else _text_of(part)]
        if not isinstance(self.input, list):
            return [self.input or ""]
        if self.input and isinstance(self.input[0], int):
            return [self.input]  # type: ignore[list-item]
        return [_text_of(one) for one in self.input]  # type: ignore[misc]

    @property
    def images(self) -> list[str]:
        """Encoded, as they were sent."""
        return [one.image for one in self.inputs if isinstance(one, ImageInput)]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Of models that can do it."""
        return ("image_text",) if self.images else ("embed", "image_text")


def _text_of(part: Any) -> Any:
    return part.text if isinstance(part, (TextInput, TextPart)) else part
