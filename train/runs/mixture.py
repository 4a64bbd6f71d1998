"""A run on a mixture: what the recipe's weights mean for its steps, and what is told of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from everlearn.errors import InvalidInput
from train.data.mixing.mixed_rows import Mixed, MixedRows, Mixture
from train.data.store import TokenStore
from train.loop import total_steps
from train.objectives.objective import Batches
from train.recipe import TrainRecipe


def mixture_of(recipe: TrainRecipe, store: TokenStore) -> Mixture | None:
    """What the recipe says of the store's components. Raises InvalidInput where the store has others."""
    wanted, there = recipe.data.mixture, store.card.components or {}
    if wanted is None:
        return None
    if wanted.keys() != there.keys():
        has = f"the components {', '.join(there)}" if there else "no components"
        raise InvalidInput(
            f"data.mixture names {', '.join(wanted)}, and the store has {has}", param="data.mixture"
        )
    named = [(step, dict(zip(wanted, weights, strict=True))) for step, weights in recipe.data.stages]
    stages = tuple((step, tuple(weights[name] for name in there)) for step, weights in named)
    return Mixture(there, stages, recipe.rows)


@dataclass(frozen=True)
class MixtureRun:
    """``seen``: the rows of the whole run."""

    rows: MixedRows
    seen: int

    @classmethod
    def of(cls, recipe: TrainRecipe, batches: Batches) -> MixtureRun | None:
        """None where nothing is mixed. Raises InvalidInput for weights from a step on that the run does not have."""
        if not isinstance(batches, Mixed) or batches.mixed is None:
            return None
        steps, last = total_steps(recipe, batches.rows), recipe.data.stages[-1][0]
        if last >= steps:
            raise InvalidInput(
                f"data.curriculum has weights from step {last} on, and the run has {steps} steps",
                param="data.curriculum",
            )
        return cls(batches.mixed, steps * recipe.rows)

    def ahead(self) -> str:
        """For people, before the first step."""
        counts = self.rows.mixture.counts(self.seen)
        epochs = self.rows.epochs(self.seen).items()
        said = (
            f"{name} {times:.2f} times ({count / self.seen:.1%} of the rows)"
            for (name, times), count in zip(epochs, counts, strict=True)
        )
        return f"data: of the mixture, the run goes through {', '.join(said)}"

    def done(self) -> str:
        """For people, after the last step."""
        said = (
            f"{name} {each['tokens']} tokens ({each['epochs']:.2f} times)"
            for name, each in self.metrics().items()
        )
        return f"data: of the mixture, the run saw {', '.join(said)}"

    def metrics(self) -> dict[str, dict[str, Any]]:
        """By component, the tokens that the whole run sees, and how often it goes through it."""
        epochs = self.rows.epochs(self.seen)
        return {
            name: {"tokens": tokens, "epochs": round(epochs[name], 4)}
            for name, tokens in self.rows.seen(self.seen).items()
        }
