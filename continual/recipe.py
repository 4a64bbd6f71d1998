"""The continual-training recipe. Validated where the job is created, so it imports nothing heavy.

The defaults are for a model of about 135M parameters on two cores. Shares are tokens per token of new
data; gains and forgetting are nats per token (0.05 nats is five percent of perplexity).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from everlearn.names import plain_name
from train.recipe import validate_recipe

BASE = "base"
"""The domain of what the model wrote itself: what it knew before its first job (arXiv 2605.26097)."""

GENERAL = "general"
"""The shipped held-out text: prose that no job trains on."""

RESERVED = frozenset({BASE, GENERAL})

MIN_DOCUMENTS = 4
"""The gate needs so many held-out documents of a domain: with fewer, its bounds mean nothing."""


def _not_reserved(domain: str) -> str:
    if domain in RESERVED:
        raise ValueError(f"{domain!r} is everlearn's own; choose another name")
    return domain


Domain = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$"), AfterValidator(_not_reserved)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Lora(_Part):
    """Low-rank adapters (arXiv 2106.09685), merged into the weights at the end."""

    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=32, gt=0)


class Replay(_Part):
    """What is trained beside the new data, so that the old is kept, and how much of it is stored.

    ``share``: tokens of earlier domains, ``base``: of the model's own samples, both per new token. On them
    the candidate is held to what its parent predicts; ``weight``: of that divergence beside the new text's loss.
    ``buffer_tokens`` and ``held_tokens`` bound what is kept of one domain, to train on and to measure on.
    """

    share: float = Field(default=0.5, ge=0, le=16)
    base: float = Field(default=0.5, ge=0, le=16)
    weight: float = Field(default=1.0, ge=0, le=100)
    buffer_tokens: int = Field(default=100_000, ge=0)
    held_tokens: int = Field(default=4096, ge=64)


class Generation(_Part):
    """The model's own samples, made before its first job: pure sampling, as the method asks.

    ``tokens``: how many in all, in samples of at most ``sample_tokens``, ``batch`` of them at once.
    """

    tokens: int = Field(default=16_384, ge=0)
    sample_tokens: int = Field(default=256, ge=8, le=8192)
    batch: int = Field(default=32, ge=1, le=1024)
    temperature: float = Field(default=1.0, gt=0, le=2)


class GateThresholds(_Part):
    """What a candidate must show, each bound one-sided with ``confidence``.

    Its gain on the new domain is at least ``min_gain``. On every earlier domain and on the general text it stands at
    most ``max_forgetting`` below the best that the model ever was. ``unmeasured``: what becomes of a candidate where
    too few held-out documents of an earlier domain are there to measure it.
    """

    min_gain: float = Field(default=0.01, ge=-10, le=10)
    max_forgetting: float = Field(default=0.05, ge=0, le=10)
    confidence: float = Field(default=0.9, gt=0.5, lt=1)
    resamples: int = Field(default=2000, ge=100, le=100_000)
    unmeasured: Literal["refuse", "allow"] = "refuse"


class ContinualRecipe(_Part):
    """One job. ``domain`` None takes the training file's name, ``threads`` None those of the settings.

    The learning rate is warmed up over ``warmup`` of all steps to ``lr`` x ``lr_multiplier`` and decayed by a
    cosine to ``final_lr`` of that (arXiv 2403.08763). ``batch_tokens`` counts tokens of one optimizer step.
    Without ``promote`` what passes the gate becomes the alias candidate, and the champion stays.
    """

    domain: Domain | None = None
    epochs: int = Field(default=2, ge=1, le=100)
    lr: float = Field(default=1e-4, gt=0, le=1)
    lr_multiplier: float = Field(default=1.0, gt=0, le=100)
    warmup: float = Field(default=0.1, ge=0, le=1)
    final_lr: float = Field(default=0.1, ge=0, le=1)
    batch_tokens: int = Field(default=4096, ge=16)
    sequence_tokens: int = Field(default=512, ge=16, le=131_072)
    micro_batch: int = Field(default=4, ge=1, le=1024)
    tune: Literal["full", "lora"] = "full"
    lora: Lora = Lora()
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    held_fraction: float = Field(default=0.1, gt=0, lt=0.9)
    replay: Replay = Replay()
    generation: Generation = Generation()
    gate: GateThresholds = GateThresholds()
    checkpoint_every_s: float = Field(default=60, gt=0)
    promote: bool = True
    seed: int = Field(default=0, ge=0, lt=2**31)
    threads: int | None = Field(default=None, ge=1, le=1024)


def parse_recipe(
    values: Mapping[str, Any],
    *,
    n_epochs: int | Literal["auto"] | None = None,
    learning_rate_multiplier: float | Literal["auto"] | None = None,
    batch_size: int | Literal["auto"] | None = None,
    seed: int | None = None,
) -> ContinualRecipe:
    """A recipe from a request: ``values`` over the hyperparameters of OpenAI's API over the defaults.

    ``batch_size`` counts full sequences. Raises ConfigError naming the key at fault and the nearest known one.
    """
    merged: dict[str, Any] = {}
    for key, given in (("epochs", n_epochs), ("lr_multiplier", learning_rate_multiplier), ("seed", seed)):
        if given not in (None, "auto"):
            merged[key] = given
    merged |= values
    recipe = validate_recipe(ContinualRecipe, merged)
    if isinstance(batch_size, int) and "batch_tokens" not in values:
        recipe = validate_recipe(
            ContinualRecipe, merged | {"batch_tokens": batch_size * recipe.sequence_tokens}
        )
    return recipe


def domain_of(filename: str) -> str:
    """A domain's name from a file's: ``"My RFCs.jsonl"`` gives ``my-rfcs``, ``"模型.txt"`` ``moxing``."""
    stem = PurePath(filename).name.split(".")[0]
    name = plain_name(stem, "_-", "unnamed")
    return f"{name}-file" if name in RESERVED else name
