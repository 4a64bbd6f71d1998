"""Which ids stop an answer, by template, generation config, config and tokenizer."""

import json
from pathlib import Path

import pytest

from everlearn.chat.stops import stops_of, write_generation_config
from everlearn.errors import Corrupt
from tests.support.templates import (
    CHATML,
    CHATML_PROMPT,
    CHATML_TOKENS,
    ENDOFTEXT,
    KINDS,
    turns,
    write_kind,
    write_tokenizer,
)
from tests.support.templates import write_generation_config as name_ids

CHATML_TEMPLATE = turns(CHATML, CHATML_PROMPT)


@pytest.mark.parametrize("name", KINDS)
def test_a_template_of_each_kind_tells_what_stops(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    ids = write_kind(tmp_path, kind)
    stops = stops_of(tmp_path)
    assert set(stops.ids) == {ids[token] for token in kind.stops}
    assert (stops.note is None) == (kind.note is None) and (kind.note or "") in (stops.note or "")
    if kind.eos:
        assert stops.text_end == ids[kind.eos], "documents end as before"


def test_the_ids_of_all_four_places_are_one_set(tmp_path: Path) -> None:
    ids = write_tokenizer(tmp_path, [*CHATML_TOKENS, "<|a|>", "<|b|>", "<|c|>"], CHATML_TEMPLATE)
    name_ids(tmp_path, [ids["<|a|>"], ids["<|b|>"]])
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": ids["<|c|>"]}}))
    stops = stops_of(tmp_path)
    assert stops.ids == tuple(ids[one] for one in ("<|a|>", "<|b|>", "<|c|>", ENDOFTEXT, "<|im_end|>"))
    assert stops.text_end == ids["<|a|>"], "the configuration for generation knows best what ends a text"


def test_a_word_that_a_default_of_the_configuration_names_does_not_stop(tmp_path: Path) -> None:
    ids = write_tokenizer(tmp_path, CHATML_TOKENS, CHATML_TEMPLATE)
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')  # LlamaConfig's own default: here it is "#"
    assert set(stops_of(tmp_path).ids) == {ids[ENDOFTEXT], ids["<|im_end|>"]}
    name_ids(tmp_path, 2)  # said on purpose
    assert stops_of(tmp_path).ids[0] == 2


def test_an_id_that_the_tokenizer_does_not_have_and_one_that_is_none_are_left_out(tmp_path: Path) -> None:
    ids = write_tokenizer(tmp_path, CHATML_TOKENS, None)
    for said in ([ids[ENDOFTEXT], 10**6, -1, "x", None, True], None, [], "x"):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
        assert stops_of(tmp_path).ids == (ids[ENDOFTEXT],)


def test_a_line_break_or_word_behind_an_answer_never_stops(tmp_path: Path) -> None:
    template = turns("{{ m.role }}: {{ m.content }}\nEND\n\n", "assistant: ")
    ids = write_tokenizer(tmp_path, [ENDOFTEXT], template, added=("\n", "\n\n", "END", "###"))
    stops = stops_of(tmp_path)
    assert stops.ids == (ids[ENDOFTEXT],) and stops.turn_ends == () and stops.note


def test_a_token_that_ends_a_call_stops(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}{{ tools | length }}"
        "<|call|>{% else %}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    ids = write_tokenizer(tmp_path, [*CHATML_TOKENS, "<|call|>"], template)
    assert set(stops_of(tmp_path).ids) == {ids[one] for one in (ENDOFTEXT, "<|im_end|>", "<|call|>")}


@pytest.mark.parametrize("closing", ["<|calls_end|><|im_end|>\n", "</tool_call><|im_end|>\n"])
def test_a_token_that_closes_a_call_within_an_answer_does_not_stop(tmp_path: Path, closing: str) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}{{ tools | length }}"
        + closing + "{% else %}<|im_end|>\n{% endif %}{% endfor %}"
    )  # fmt: skip
    ids = write_tokenizer(
        tmp_path, [*CHATML_TOKENS, "<|calls_end|>"], template, added=["<tool_call>", "</tool_call>"]
    )
    assert set(stops_of(tmp_path).ids) == {ids[ENDOFTEXT], ids["<|im_end|>"]}


def test_a_template_that_refuses_is_told(tmp_path: Path) -> None:
    ids = write_tokenizer(tmp_path, CHATML_TOKENS, "{{ raise_exception('only on Mondays') }}")
    stops = stops_of(tmp_path)
    assert stops.ids == (ids[ENDOFTEXT],) and "only on Mondays" in (stops.note or "")
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    assert "Expected" in (stops_of(tmp_path).note or "")


def test_the_default_of_several_templates_and_tokens_of_the_older_file_count(tmp_path: Path) -> None:
    ids = write_tokenizer(tmp_path, CHATML_TOKENS, None)
    named = [{"name": "rag", "template": "x"}, {"name": "default", "template": CHATML_TEMPLATE}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named, "eos_token": None}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": ENDOFTEXT}}))
    assert set(stops_of(tmp_path).ids) == {ids[ENDOFTEXT], ids["<|im_end|>"]}


def test_the_configuration_for_generation_is_completed_once(tmp_path: Path) -> None:
    ids = write_tokenizer(tmp_path, CHATML_TOKENS, CHATML_TEMPLATE)
    said = {"eos_token_id": ids[ENDOFTEXT], "temperature": 0.7, "_from_model_config": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    for _ in range(2):
        write_generation_config(tmp_path)
        assert json.loads((tmp_path / "generation_config.json").read_bytes()) == {
            "eos_token_id": [ids[ENDOFTEXT], ids["<|im_end|>"]],
            "temperature": 0.7,
        }


def test_a_folder_without_a_tokenizer_says_what_its_configuration_says(tmp_path: Path) -> None:
    assert stops_of(tmp_path).ids == ()
    name_ids(tmp_path, [7, 8])
    assert stops_of(tmp_path).ids == (7, 8)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(Corrupt, match="is not JSON"):
        stops_of(tmp_path)
