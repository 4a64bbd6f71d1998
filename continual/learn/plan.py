"""A job's starting point, pinned when it first runs, so that its result does not depend on interruptions."""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict

from continual.recipe import ContinualRecipe
from everlearn.errors import NotFound, Unsupported
from everlearn.registry.records import CHAMPION
from everlearn.registry.registry import Registry
from everlearn.settings import Settings


class Plan(BaseModel):
    """``champion`` is what must be beaten, ``parent`` the weights that are trained on (refs), ``threads`` how many
    compute: all that decides the result beside the data and the buffer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    domain: str
    champion: str
    champion_digest: str
    parent: str
    parent_digest: str
    recipe: ContinualRecipe
    threads: int


def make_plan(
    registry: Registry, settings: Settings, model: str, domain: str, recipe: ContinualRecipe
) -> Plan:
    """From the champion of ``model`` as it is now. Raises NotFound, and Unsupported for what cannot be trained."""
    champion = registry.resolve(model)
    if champion.task != "generate":
        raise Unsupported(f"{champion.ref} is not a language model: continual training is for task generate")
    parent = registry.weights(model)
    return Plan(
        model=champion.model,
        domain=domain,
        champion=champion.ref,
        champion_digest=champion.digest,
        parent=parent.ref,
        parent_digest=parent.digest,
        recipe=recipe,
        threads=recipe.threads or settings.continual.threads or os.cpu_count() or 1,
    )


def is_current(registry: Registry, plan: Plan) -> bool:
    """Whether the champion is still the one that the plan was made for."""
    try:
        return registry.resolve(f"{plan.model}@{CHAMPION}").digest == plan.champion_digest
    except NotFound:  # no champion yet: a bare name stands for the newest version
        return registry.resolve(plan.model).digest == plan.champion_digest
