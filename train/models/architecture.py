"""The key ``architecture`` of a recipe: the sizes of a model from scratch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from train.data.options import TokenizerOptions
from train.models.families import FAMILIES, Family, FamilyName


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Experts(_Part):
    """Of DeepSeek's layers (arXiv 2401.06066): ``count`` experts, of which each token goes through ``per_token``, and
    ``shared`` that all go through. ``ffn``: of one; by default such that a token's experts are as large as ``ffn`` of
    the architecture. ``balance``: by how much a step moves the bias of an expert that got more or fewer tokens than the
    others, see ``train.models.expert_balance``.
    """

    count: int = Field(default=8, ge=2, le=4096)
    per_token: int = Field(default=2, ge=1, le=256)
    shared: int = Field(default=1, ge=1, le=64)
    ffn: int | None = Field(default=None, ge=8, le=2**20)
    balance: float = Field(default=0.001, ge=0, le=1)

    @model_validator(mode="after")
    def _enough(self) -> Experts:
        if self.per_token > self.count:
            raise ValueError(f"per_token is {self.per_token}, and there are {self.count} experts")
        return self


class ImageTower(_Part):
    """CLIP's for pictures of ``size`` pixels a side, in patches of ``patch``. ``None`` is as the tower for texts has it."""

    size: int = Field(default=64, ge=16, le=1024)
    patch: int = Field(default=8, ge=1, le=1024)
    layers: int | None = Field(default=None, ge=1, le=1024)
    hidden: int | None = Field(default=None, ge=8, le=2**17)
    heads: int | None = Field(default=None, ge=1, le=1024)
    ffn: int | None = Field(default=None, ge=8, le=2**20)

    @model_validator(mode="after")
    def _whole_patches(self) -> ImageTower:
        if self.size % self.patch:
            raise ValueError(f"size ({self.size}) must be a multiple of patch ({self.patch})")
        return self


VOCAB = 16384


class Architecture(_Part):
    """A model from scratch. ``None`` is decided from the rest.

    ``family``: of ``train.models.families``. ``init``: how linear layers begin, as the family has it, or Xavier's or
    He's way. ``context``: positions that it has; T5's have none of their own. ``vocab``: of the tokenizer that is learnt; one
    that is taken (``tokenizer: {of: …}``) has its own. ``experts``: of the family deepseek.
    ``images`` and ``projection`` (the size of the space that images and texts share): of the family clip.
    """

    family: FamilyName = "llama"
    layers: int = Field(ge=1, le=1024)
    hidden: int = Field(ge=8, le=2**17)
    heads: int = Field(ge=1, le=1024)
    kv_heads: int | None = Field(default=None, ge=1, le=1024)
    ffn: int | None = Field(default=None, ge=8, le=2**20)
    context: int = Field(default=2048, ge=16, le=2**24)
    vocab: int = Field(default=VOCAB, ge=260, le=2**21)
    tied: bool = True
    init: Literal["family", "xavier", "he"] = "family"
    experts: Experts | None = None
    images: ImageTower | None = None
    projection: int | None = Field(default=None, ge=2, le=2**16)
    tokenizer: TokenizerOptions | None = None

    @property
    def of(self) -> Family:
        return FAMILIES[self.family]

    @property
    def tokenizer_options(self) -> TokenizerOptions:
        """Its own, or those of the family."""
        return self.tokenizer or TokenizerOptions(kind=self.of.tokenizer)

    @property
    def taken_tokenizer(self) -> Path | None:
        """The folder, or the name of the model, whose tokenizer it gets."""
        return self.tokenizer.of if self.tokenizer else None

    def with_tokenizer_of(self, find: Callable[[Path], Path]) -> Architecture:
        """With ``find``'s folder for the tokenizer that it takes, if it takes one."""
        if self.tokenizer is None or self.tokenizer.of is None:
            return self
        taken = self.tokenizer.model_copy(update={"of": find(self.tokenizer.of)})
        return self.model_copy(update={"tokenizer": taken})

    @property
    def ffn_size(self) -> int:
        """Gated layers have three matrices for two, and are a third narrower."""
        if self.ffn:
            return self.ffn
        return -(-self.hidden * 8 // 3 // 32) * 32 if self.of.gated else 4 * self.hidden

    @property
    def expert_ffn(self) -> int:
        """Of one expert."""
        experts = self.experts or Experts()
        return experts.ffn or max(8, self.ffn_size // (experts.per_token + experts.shared) // 8 * 8)

    @property
    def parameters(self) -> int:
        """About how many: embeddings, attention and feed-forward; norms are few."""
        shared = (self.kv_heads or self.heads) / self.heads
        matrices = 3 if self.of.gated else 2
        attention = round(2 * self.hidden * (1 + shared))
        layer = self.hidden * (attention + matrices * self.ffn_size)
        total = self.layers * layer
        if self.experts:
            experts = self.experts.count - self.experts.per_token
            total += (self.layers - 1) * experts * matrices * self.hidden * self.expert_ffn
        if self.of.task == "text2text":  # as many layers again, which also attend to the first ones
            total += self.layers * (layer + self.hidden * attention)
        if self.images:
            width = self.images.hidden or self.hidden
            inner = self.images.ffn or 4 * width
            total += (self.images.layers or self.layers) * width * (4 * width + 2 * inner)
        return total + self.vocab * self.hidden * (1 if self.tied else 2)

    @model_validator(mode="before")
    @classmethod
    def _parts_of_the_family(cls, value: Any) -> Any:
        family = value.get("family") if isinstance(value, dict) else None
        part = "experts" if family == "deepseek" else "images" if family == "clip" else None
        return {**value, part: {}} if part and value.get(part) is None else value

    @model_validator(mode="after")
    def _divisible(self) -> Architecture:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.kv_heads not in (None, self.heads) and not self.of.grouped:
            raise ValueError(f"kv_heads: each head of {self.family} has keys and values of its own")
        if self.experts and self.family != "deepseek":
            raise ValueError(f"experts: {self.family} has none, deepseek has")
        if (self.images or self.projection) and self.family != "clip":
            raise ValueError(f"images and projection: {self.family} sees no images, clip does")
        if self.images and (width := self.images.hidden or self.hidden) % (
            heads := self.images.heads or self.heads
        ):
            raise ValueError(f"images.hidden ({width}) must be a multiple of images.heads ({heads})")
        if self.taken_tokenizer and self.vocab != VOCAB:
            raise ValueError(f"vocab: the tokenizer of {self.taken_tokenizer.name} has its own, leave it out")
        if self.family == "clip" and self.tokenizer_options.kind == "bpe" and not self.taken_tokenizer:
            raise ValueError(
                "tokenizer: clip reads a text at the mark behind it, which wordpiece and unigram have"
            )
        if self.family == "modernbert" and self.layers < 2:
            raise ValueError("layers: modernbert has layers of two kinds, and so at least 2")
        return self
