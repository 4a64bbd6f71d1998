"""The registry does what a dictionary would, whatever is asked of it in whatever order."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from everlearn.errors import Conflict, NotFound
from everlearn.registry.registry import Registry
from everlearn.settings import Settings

models = st.sampled_from(["a", "b"])
numbers = st.integers(1, 4)
alias_names = st.sampled_from(["champion", "previous", "candidate"])
formats = st.sampled_from(["safetensors", "onnx"])


class RegistryAgainstDictionaries(RuleBasedStateMachine):
    fill_bundle: Any

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.registry = Registry(Settings(home=self.home))
        self.versions: dict[tuple[str, int], tuple[str, str | None]] = {}  # digest, parent
        self.aliases: dict[tuple[str, str], int] = {}
        self.last: dict[str, int] = {}
        self.added = 0

    def teardown(self) -> None:
        self.registry.database.dispose()
        shutil.rmtree(self.home)

    @rule(model=models, format=formats, parent=st.none() | st.tuples(models, numbers))
    def add(self, model: str, format: str, parent: tuple[str, int] | None) -> None:
        known = self.versions.get(parent) if parent else None
        digest = known[0] if known else None
        self.added += 1
        with self.registry.staging() as staging:
            type(self).fill_bundle(staging, salt=str(self.added), format=format, parent=digest)
            version = self.registry.add(staging, model)
        self.last[model] = self.last.get(model, 0) + 1
        assert version.version == self.last[model]
        self.versions[model, version.version] = (version.digest, digest)
        if format == "onnx":
            self.aliases.setdefault((model, "champion"), version.version)

    @rule(model=models, alias=alias_names, number=numbers)
    def set_alias(self, model: str, alias: str, number: int) -> None:
        if (model, number) not in self.versions:
            with pytest.raises(NotFound):
                self.registry.set_alias(model, alias, number)
        elif alias == "previous" and self.aliases.get((model, "champion")) == number:
            with pytest.raises(Conflict, match="previous is what a rollback goes back to"):
                self.registry.set_alias(model, alias, number)
        else:
            self.registry.set_alias(model, alias, number)
            if alias == "champion":
                self._move(model, number)
            else:
                self.aliases[model, alias] = number

    @rule(model=models, alias=alias_names)
    def remove_alias(self, model: str, alias: str) -> None:
        if (model, alias) not in self.aliases:
            with pytest.raises(NotFound):
                self.registry.remove_alias(model, alias)
            return
        self.registry.remove_alias(model, alias)
        former = self.aliases.pop((model, alias))
        if alias == "champion":
            self.aliases[model, "previous"] = former

    @rule(model=models, number=numbers)
    def promote(self, model: str, number: int) -> None:
        if (model, number) not in self.versions:
            with pytest.raises(NotFound):
                self.registry.promote(f"{model}@{number}")
            return
        self.registry.promote(f"{model}@{number}")
        self._move(model, number)

    @rule(model=models)
    def rollback(self, model: str) -> None:
        previous = self.aliases.get((model, "previous"))
        if previous is None:
            with pytest.raises((Conflict, NotFound)):
                self.registry.rollback(model)
            return
        self.registry.rollback(model)
        self._move(model, previous)
        assert self.registry.aliases(model)["champion"] == previous

    @rule(model=models, number=st.none() | numbers)
    def delete(self, model: str, number: int | None) -> None:
        doomed = {key for key in self.versions if key[0] == model and number in (None, key[1])}
        ref = model if number is None else f"{model}@{number}"
        if not doomed:
            with pytest.raises(NotFound):
                self.registry.delete(ref)
            return
        digests = {self.versions[key][0] for key in doomed}
        child = any(parent in digests for key, (_, parent) in self.versions.items() if key not in doomed)
        aliased = number is not None and number in self._aliases_of(model).values()
        if child or aliased:
            with pytest.raises(Conflict):
                self.registry.delete(ref)
            return
        self.registry.delete(ref)
        for key in doomed:
            del self.versions[key]
        if number is None:
            self.aliases = {key: value for key, value in self.aliases.items() if key[0] != model}

    @rule()
    def collect(self) -> None:
        self.registry.collect()
        stored = {path.name for path in self.registry.settings.directory("store").iterdir() if path.is_dir()}
        assert stored == {digest for digest, _ in self.versions.values()}

    @rule()
    def restart(self) -> None:
        self.registry.database.dispose()
        self.registry = Registry(Settings(home=self.home))

    @invariant()
    def lists_what_the_dictionaries_hold(self) -> None:
        listed = self.registry.list()
        assert {(v.model, v.version): v.digest for model in listed for v in model.versions} == {
            key: digest for key, (digest, _) in self.versions.items()
        }
        for model in listed:
            assert model.aliases == self._aliases_of(model.name)
            newest = max(number for name, number in self.versions if name == model.name)
            assert self.registry.resolve(model.name).version == model.aliases.get("champion", newest)

    @invariant()
    def rolls_back_to_another_version_than_the_champion(self) -> None:
        for model in self.registry.list():
            assert model.aliases.get("previous") != model.aliases.get("champion", 0)

    @invariant()
    def holds_every_listed_bundle(self) -> None:
        for model in self.registry.list():
            for version in model.versions:
                assert self.registry.path(version).is_dir()

    def _move(self, model: str, number: int) -> None:
        """The champion, whoever moves it; where it came from is what a rollback goes back to."""
        former = self.aliases.get((model, "champion"))
        if former not in (None, number):
            self.aliases[model, "previous"] = former
        elif self.aliases.get((model, "previous")) == number:
            del self.aliases[model, "previous"]
        self.aliases[model, "champion"] = number

    def _aliases_of(self, model: str) -> dict[str, int]:
        return {alias: number for (name, alias), number in self.aliases.items() if name == model}


def test_any_sequence_of_operations_leaves_what_dictionaries_would_hold(fill_bundle: Any) -> None:
    RegistryAgainstDictionaries.fill_bundle = staticmethod(fill_bundle)
    run_state_machine_as_test(
        RegistryAgainstDictionaries, settings=settings(max_examples=8, stateful_step_count=25, deadline=None)
    )
