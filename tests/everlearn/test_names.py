"""Names of any script become names that can be written anywhere, and different ones stay different."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.bundles.contents import NAME, check_name
from everlearn.errors import InvalidInput
from everlearn.names import plain_name


@given(st.text(max_size=200))
def test_any_text_becomes_a_name(said: str) -> None:
    name = plain_name(said, "._-", "model")
    assert NAME.fullmatch(name) and ".." not in name
    assert plain_name(name, "._-", "model") == name


def test_names_of_which_nothing_is_left_or_not_all_stay_apart() -> None:
    for one, other in (("!!!", "???"), ("a" * 70, "a" * 71), ("…", "—" * 3)):
        names = {plain_name(said, "._-", "model") for said in (one, other)}
        assert len(names) == 2 and all(len(name) <= 64 for name in names)
    assert plain_name("", "._-", "model") == plain_name("  ", "._-", "model") == "model"


def test_the_same_name_composed_in_two_ways_is_one() -> None:
    assert plain_name("e\u0301", "-", "x") == plain_name("\u00e9", "-", "x") == "e"
    assert plain_name("!" * 3 + "\u0301", "-", "x") == plain_name("!!!\u0301", "-", "x")


def test_a_refused_name_is_told_with_one_that_would_do() -> None:
    with pytest.raises(InvalidInput, match="'modele-ete' would do"):
        check_name("Modèle été", "a model's name")
