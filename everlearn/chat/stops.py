"""Stop tokens of a turn: one set of ids for training, export and every engine.

Four places name such tokens: generation_config.json, config.json, the tokenizer, and the chat template, which alone
says what it writes behind an answer. A base model's configuration often names the end of a text only
(``<|endoftext|>``), while its template ends turns otherwise (``<|im_end|>``). So the template is rendered, with a mark
for the answer: once as the last message, once with another question behind it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

from jinja2 import Template, TemplateError

from everlearn.bundles.durable import write_file
from everlearn.chat.template import any_of, sandbox, template_source, token_names
from everlearn.errors import Corrupt

Message = dict[str, Any]

MARK, ASKED = "qzanswerqz", "qzquestionqz"
"""Words that no template writes."""
MARKUP = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""What a token looks like that is no word, where the tokenizer does not call it special."""


class Controls:
    """The tokens that a tokenizer has for markup: special ones, and added ones that look like it. ``ids`` by name."""

    def __init__(self, added: Iterable[Mapping[str, Any]]) -> None:
        tokens = [one for one in added if str(one["content"]).strip()]
        self.special = {str(one["content"]): int(one["id"]) for one in tokens if one.get("special")}
        markup = {
            str(one["content"]): int(one["id"]) for one in tokens if MARKUP.fullmatch(str(one["content"]))
        }
        self.ids = self.special | markup
        self._one = any_of(self.ids)
        self._leading = re.compile(rf"(?:{self._one.pattern}|\s)*")
        self._lengths = sorted({len(name) for name in self.ids}, reverse=True)

    def within(self, text: str) -> list[str]:
        """Those in ``text``, in order."""
        return self._one.findall(text)

    def leading(self, text: str) -> list[str]:
        """Those that ``text`` begins with; white space between them does not count."""
        run = self._leading.match(text)
        return self.within(run[0]) if run else []

    def trailing(self, text: str) -> list[tuple[str, int]]:
        """Those that ``text`` ends with, white space between them or not, and where each ends."""
        found: list[tuple[str, int]] = []
        at = len(text)
        while at:
            name = next(
                (one for size in self._lengths if (one := text[max(0, at - size) : at]) in self.ids), ""
            )
            if name:
                found.append((name, at))
            elif not text[at - 1].isspace():
                break
            at -= len(name) or 1
        return found[::-1]

    def beginning(self, text: str, at: int) -> int:
        """``at``, or where the control begins that it lies within."""
        longest = self._lengths[0] if self._lengths else 0
        first = max(0, at - longest)
        for match in self._one.finditer(text, first, at + longest):
            if match.start() < at < match.end():
                return match.start()
        return at


@dataclass(frozen=True)
class Stops:
    """``ids``: every id that ends an answer, those that the model's configuration names first.

    ``text_end``: the one that ends a document. ``turn_ends``: those that the chat template writes behind an answer.
    ``with_turn``: it does so at once; else with the next message, or (no turn_ends) never. ``note``: what people must
    know where nothing is found.
    """

    ids: tuple[int, ...]
    text_end: int | None
    turn_ends: tuple[int, ...] = ()
    with_turn: bool = True
    note: str | None = None
    controls: Controls = field(default_factory=lambda: Controls(()), repr=False, compare=False)

    @cached_property
    def names(self) -> dict[str, int]:
        """The controls among them, by name."""
        known = set(self.ids)
        return {name: id for name, id in self.controls.ids.items() if id in known}

    @cached_property
    def unmarked(self) -> list[str]:
        """Those that the tokenizer does not call special: for it to tell them from words, it must be told."""
        return [name for name in self.names if name not in self.controls.special]

    def first_in(self, names: Sequence[str]) -> int | None:
        """The place of the first that stops among the ``names`` of controls."""
        return next((at for at, name in enumerate(names) if name in self.names), None)


NO_STOPS = Stops((), None)


def stops_of(directory: Path) -> Stops:
    """The stops of a Hugging Face directory, as far as its files say. Raises Corrupt where one is no JSON."""
    tokenizer = _json(directory / "tokenizer.json")
    added = cast("list[Mapping[str, Any]]", tokenizer.get("added_tokens") or [])
    controls, variables = Controls(added), token_names(directory)
    known = _vocabulary(tokenizer)
    named = _declared(directory, known | controls.ids, variables["eos_token"], controls)
    size = max([*known.values(), *(int(one["id"]) for one in added)], default=-1) + 1
    if tokenizer:
        named = [id for id in named if 0 <= id < size]
    ids = tuple(dict.fromkeys(named))
    text_end = ids[0] if ids else None
    source = template_source(directory)
    if source is None or not tokenizer:
        return Stops(ids, text_end, controls=controls)
    return _with_template(ids, text_end, source, variables, controls)


def unnamed_stops(directory: Path) -> list[int]:
    """The stops that generation_config.json lacks: what goes by that file alone must be told of them."""
    named = _ids(_json(directory / "generation_config.json").get("eos_token_id"))
    return [id for id in stops_of(directory).ids if id not in named]


def write_generation_config(directory: Path) -> Stops:
    """generation_config.json names every stop from now on: vLLM and transformers go by it."""
    stops, file = stops_of(directory), directory / "generation_config.json"
    said = _json(file)
    wanted: int | list[int] = list(stops.ids) if len(stops.ids) != 1 else stops.ids[0]
    if stops.ids and said.get("eos_token_id") != wanted:
        said.pop("_from_model_config", None)  # transformers would make it anew from config.json
        write_file(file, json.dumps(said | {"eos_token_id": wanted}, indent=2).encode())
    return stops


def write_genai_config(export: Path, parent: Path) -> Stops:
    """genai_config.json of an export names every stop of its parent."""
    stops, file = stops_of(parent), export / "genai_config.json"
    said = _json(file)
    if stops.ids:
        said["model"]["eos_token_id"] = list(stops.ids) if len(stops.ids) > 1 else next(iter(stops.ids))
        write_file(file, json.dumps(said, indent=4).encode())
    return stops


def _declared(directory: Path, known: Mapping[str, int], eos_token: str, controls: Controls) -> list[int]:
    """The ids that the files name. config.json's default may be any word's id: it counts where it is a control,
    or nothing else is named."""
    config = _json(directory / "config.json")
    first = _ids(_json(directory / "generation_config.json").get("eos_token_id"))
    genai = _json(directory / "genai_config.json").get("model")
    if isinstance(genai, dict):
        first += _ids(cast("dict[str, Any]", genai).get("eos_token_id"))
    rest = _ids(config.get("eos_token_id"))
    text_config = config.get("text_config")
    if isinstance(text_config, dict):
        rest += _ids(cast("dict[str, Any]", text_config).get("eos_token_id"))
    if eos_token in known:
        rest.append(known[eos_token])
    markup = set(controls.ids.values())
    sure = [*first, *(id for id in rest if id in markup)]
    return sure or rest


def _ids(value: Any) -> list[int]:
    """eos_token_id is an id, a list of them, or nothing."""
    listed = cast("list[Any]", value) if isinstance(value, list) else [value]
    return [id for id in listed if isinstance(id, int) and not isinstance(id, bool)]


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    model = cast("dict[str, Any]", tokenizer.get("model") or {})
    vocab: Any = model.get("vocab") or {}
    if isinstance(vocab, list):  # Unigram: [piece, score] each
        pieces = cast("list[list[Any]]", vocab)
        return {str(piece[0]): id for id, piece in enumerate(pieces)}
    return cast("dict[str, int]", vocab)


# What the template writes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Renders:
    """A template with what it is given each time."""

    template: Template
    variables: Mapping[str, str]
    system: bool = False

    def __call__(self, *messages: Message, prompt: bool = False, tools: bool = False) -> str:
        first: list[Message] = [{"role": "system", "content": "Be brief."}] if self.system else []
        given = [{"type": "function", "function": TOOL}] if tools else None
        try:
            return self.template.render(
                messages=[*first, *messages], tools=given, add_generation_prompt=prompt, **self.variables
            )
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise TemplateError(str(error)) from None


TOOL: dict[str, Any] = {
    "name": "look",
    "description": "Looks.",
    "parameters": {"type": "object", "properties": {}},
}
USER: Message = {"role": "user", "content": ASKED}
ANSWER: Message = {"role": "assistant", "content": MARK}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
    ],
}
RESULT: Message = {"role": "tool", "content": "blue", "name": "look", "tool_call_id": "abcdefghi"}


def _with_template(
    ids: tuple[int, ...],
    text_end: int | None,
    source: str,
    variables: Mapping[str, str],
    controls: Controls,
) -> Stops:
    names = {name for name, id in controls.ids.items() if id in ids}
    try:
        template = sandbox().from_string(source)
        found, with_turn, render = _after_an_answer(template, variables, names, controls)
    except TemplateError as error:
        note = f"the chat template refuses a plain conversation ({error}): what ends an answer is not found"
        return Stops(ids, text_end, (), False, _with_rest(note, text_end, controls), controls)
    if not found:
        note = "the chat template writes no token that ends an answer"
        return Stops(ids, text_end, (), False, _with_rest(note, text_end, controls), controls)
    found += _after_a_call(render, names | set(found), controls, source)
    turn_ends = tuple(dict.fromkeys(controls.ids[name] for name in found))
    return Stops(tuple(dict.fromkeys([*ids, *turn_ends])), text_end, turn_ends, with_turn, None, controls)


def _with_rest(note: str, text_end: int | None, controls: Controls) -> str:
    if text_end is None:
        return f"{note}, and the tokenizer has no end token: answers end at max_tokens or a stop string alone"
    name = next((name for name, id in controls.ids.items() if id == text_end), f"the token {text_end}")
    return f"{note}: {name} is put behind each answer in training, and answers end there"


def _after_an_answer(
    template: Template, variables: Mapping[str, str], declared: set[str], controls: Controls
) -> tuple[list[str], bool, _Renders]:
    """The controls that end an answer, and whether they are written with it. Raises TemplateError."""
    render = _Renders(template, variables, system=True)
    try:
        alone = render(USER, ANSWER)
    except TemplateError:  # Gemma and others know no system message
        render = _Renders(template, variables)
        alone = render(USER, ANSWER)
    followed = render(USER, ANSWER, USER, prompt=True)
    if MARK not in alone or MARK not in followed:
        return [], False, render
    last = controls.leading(alone.rpartition(MARK)[2])
    middle = controls.leading(followed.rpartition(MARK)[2])
    shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(last, middle, strict=False))]
    before, _, between = followed.partition(MARK)[0].partition(ASKED)
    opens = _openers(render, before, middle, controls) - declared
    if end := _end_of(shared, declared, opens):
        return [end], True, render
    if end := _end_of(last, declared, opens):  # only behind the last answer
        return [end], True, render
    if end := _end_of(middle, declared, opens):  # with the next message
        return [end], False, render
    turn = next(iter(middle), None)  # what opens another's turn alone ends this one: <|user|>
    bos = variables.get("bos_token")
    if turn in controls.special and turn != bos and turn not in controls.within(between):
        return [turn], False, render
    return [], False, render


def _openers(render: _Renders, before: str, middle: list[str], controls: Controls) -> set[str]:
    """The controls that begin turns: the first ones of a conversation, and the last that opens an answer."""
    opens = set(controls.leading(before))
    closed, opened = render(USER), render(USER, prompt=True)
    if opened.startswith(closed):
        opens |= set(controls.leading(opened[len(closed) :])[-1:]) - (set(middle[:1]) - opens)
    return opens


def _end_of(run: list[str], declared: set[str], opens: set[str]) -> str | None:
    """The end of a turn in the controls that follow an answer: a known one, or the last before another turn opens."""
    known = next((name for name in run if name in declared), None)
    if known:
        return known
    own = run[: next((at for at, name in enumerate(run) if name in opens), None)]
    return own[-1] if own else None


def _after_a_call(render: _Renders, ends: set[str], controls: Controls, source: str) -> list[str]:
    """What ends an answer that calls a function, where that is another control."""
    if "tools" not in source:
        return []
    try:
        alone = render(USER, CALL, tools=True)
        followed = render(USER, CALL, RESULT, prompt=True, tools=True)
    except TemplateError:
        return []
    run = [name for name, _ in controls.trailing(alone)]
    if ends & set(run):
        return []
    if run and run[-1] in controls.special:
        return [run[-1]]
    after = controls.leading(followed[len(alone) :]) if followed.startswith(alone) else []
    return (
        after[:1] if after and after[0] in controls.special and after[0] not in controls.within(alone) else []
    )


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        said = json.loads(file.read_bytes())
    except ValueError as error:
        raise Corrupt(f"{file} is not JSON: {error}", param=file.name) from None
    return cast("dict[str, Any]", said) if isinstance(said, dict) else {}
