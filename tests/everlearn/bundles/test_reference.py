import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.bundles.reference import MAX_VERSION, Reference, parse_reference
from everlearn.errors import InvalidInput

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True).filter(lambda name: ".." not in name)
words = names.filter(lambda name: not name.isdigit())


@given(names, st.none() | st.integers(1, MAX_VERSION) | words)
def test_a_printed_reference_is_parsed_to_itself(model: str, version: int | str | None) -> None:
    reference = Reference(model, version)
    assert parse_reference(str(reference)) == reference


@given(st.text(max_size=100))
def test_any_text_is_a_reference_or_invalid_input(text: str) -> None:
    try:
        assert parse_reference(str(parse_reference(text))) == parse_reference(text)
    except InvalidInput as error:
        assert len(error.message) < 600


@pytest.mark.parametrize(
    "text", ["", "@", "a@", "@1", "a@0", "a@-1", "a@1@2", "A", "a b", "../x", "a@b/c", "a@99999999999", "a@٣"]
)
def test_wrong_references_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_reference(text)
