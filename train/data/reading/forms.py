"""The forms in which people keep examples, each rewritten as one of two: {"text": …} or {"messages": […], "tools": […]}.

Chat as OpenAI's fine-tuning files hold it, ShareGPT, Alpaca, prompt and completion (also TRL's, of messages),
question and answer, preferences, and plain texts. A record whose form is not certain is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from everlearn.errors import InvalidInput
from everlearn.suggest import did_you_mean

Record = dict[str, Any]

SHAREGPT_LISTS = ("conversations", "conversation")
QUESTIONS = ("prompt", "question", "query", "input")
ANSWERS = ("completion", "response", "answer", "output")
PREFERENCES = ("chosen", "rejected", "preferred_output", "non_preferred_output")
SYSTEMS = ("system", "system_prompt")
BESIDE = ("context", "passage", "document", "choices", "options", "history")
"""What a question cannot be understood without, where there is one."""
MEDIA = ("images", "image", "audio", "audios", "videos", "video")
UNWANTED, WANTED = ("false", "0", "0.0"), ("true", "1", "1.0")
ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "observation": "tool", "function_response": "tool", "function": "tool",
}  # fmt: skip
REASONING = "reasoning_content"
REASONINGS = (REASONING, "reasoning", "thinking")
"""The names it goes by; the first is the one that templates know."""
MESSAGE_FIELDS = {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "refusal", REASONING}

STARTS = ("messages", *SHAREGPT_LISTS, *PREFERENCES, "instruction", *QUESTIONS, "text")
KNOWN = {*STARTS, *ANSWERS, *SYSTEMS, *BESIDE, *MEDIA, "tools", "functions", "label"}
LISTS = {"messages", *SHAREGPT_LISTS, *PREFERENCES, "prompt", "completion", "tools", "functions", "history"}
LIKELY = ("messages", "text", "prompt", "conversations", "instruction")
RIGHT = (
    'Right would be "messages", "text", "prompt" and "completion", "conversations", "instruction" and "output", '
    'or "prompt", "chosen" and "rejected"'
)


class UnknownForm(InvalidInput):
    """What a file begins with is in no form that is known: it may be no training data."""


def canonical(record: Record, source: str) -> tuple[str, Record, list[str]]:
    """The record's form, what it says as {"text": …} or {"messages": […], "tools": […]}, and the keys that nothing
    was made of. Raises InvalidInput that begins with ``source``."""
    used: set[str] = set()
    said = _Said(record, source, used)
    for key in MEDIA:
        if said.get(key) not in (None, "", []):
            said.refuse(f'has "{key}"', "Only text is learnt: leave out what is about pictures or sound")
    form, make = _form(said)
    made = make(said)
    ignored = [key for key, value in record.items() if key not in used and value not in (None, "", [], {})]
    return form, made, ignored


class _Said:
    """A record, with what was used of it."""

    def __init__(self, record: Record, source: str, used: set[str]) -> None:
        self.record, self.source, self._used = record, source, used

    def get(self, key: str) -> Any:
        """The value, None where there is none or null; it counts as used."""
        self._used.add(key)
        return self.record.get(key)

    def has(self, *keys: str) -> list[str]:
        return [key for key in keys if self.record.get(key) is not None]

    def parsed(self, key: str) -> Any:
        """The value; of a text that is JSON, what that says."""
        return unpacked_json(self.get(key), f'{self.source}: "{key}"')

    def first(self, *keys: str) -> Any:
        """The value of the one of ``keys`` that there is; empty text is none."""
        there = [key for key in self.has(*keys) if self.record[key] != ""]
        if len(there) > 1:
            self.refuse(f'has both "{there[0]}" and "{there[1]}"', "Keep one of them")
        return self.get(there[0]) if there else None

    def refuse(self, wrong: str, right: str) -> NoReturn:
        raise fault(self.source, wrong, right)


def _form(said: _Said) -> tuple[str, Callable[[_Said], Record]]:
    """The one form that a record has. Raises InvalidInput where it has none, or two."""
    forms: list[tuple[str, str, Callable[[_Said], Record]]] = []
    if there := said.has(*PREFERENCES):
        forms.append((there[0], "preferences, of which the chosen answers are learnt", _preference))
    if said.has("messages") and not _repeats(said, there):
        forms.append(("messages", "chat", _chat))
    if not there and (lists := said.has(*SHAREGPT_LISTS)):
        forms.append((lists[0], "ShareGPT", _sharegpt))
    if said.has("instruction"):
        forms.append(("instruction", "Alpaca", _alpaca))
    if not there and said.has("prompt") and not _opens(said):
        forms.append(("prompt", "prompt and completion", _pair))
    if said.has("text") and not (said.has("instruction") and said.has(*ANSWERS)):
        forms.append(("text", "text", _text))
    asked = [] if "prompt" in said.record else said.has(*QUESTIONS)
    if asked and said.has(*ANSWERS) and all(form == "text" for _, form, _ in forms):
        forms.append((asked[0], "question and answer", _pair))
    if len(forms) > 1:
        said.refuse(f'has both "{forms[0][0]}" and "{forms[1][0]}"', "Keep one of them")
    if forms:
        return forms[0][1:]
    nulls = [key for key in STARTS if key in said.record and said.record[key] is None]
    if nulls and not said.has(*STARTS):
        said.refuse(f'"{nulls[0]}" is null', "Write what is to be learnt, or leave the example out")
    if said.has("role", "from") and said.has("content", "value"):
        said.refuse(
            "is a message, not an example", 'Right would be {"messages": [{"role": …, "content": …}, …]}'
        )
    found = ", ".join(f'"{key}"' for key in list(said.record)[:8]) or "no keys"
    near = "".join(did_you_mean(str(key), LIKELY) for key in list(said.record)[:8])
    raise UnknownForm(f"{said.source}: has {found}. {RIGHT}{near}", param="training_file")


def _repeats(said: _Said, preferences: list[str]) -> bool:
    """Whether the messages are the chosen conversation once more, as in UltraFeedback."""
    return bool(preferences) and said.record.get("chosen") == said.record["messages"]


def _opens(said: _Said) -> bool:
    """Whether the prompt is the conversation's first question once more, as in UltraChat."""
    messages = said.record.get("messages")
    if not isinstance(messages, list):
        return False
    asked = (
        each.get("content") for each in messages if isinstance(each, dict) and each.get("role") == "user"
    )
    return next(asked, None) == said.record["prompt"]


def _text(said: _Said) -> Record:
    return {"text": said.get("text")}


def _chat(said: _Said) -> Record:
    return _conversation(said, messages_of(said.parsed("messages"), said.source, "messages"))


def _sharegpt(said: _Said) -> Record:
    key = said.has(*SHAREGPT_LISTS)[0]
    return _conversation(said, messages_of(said.parsed(key), said.source, key))


def _alpaca(said: _Said) -> Record:
    """As LLaMA-Factory joins them: instruction, line break, input."""
    instruction = _text_of(said, said.get("instruction"), "instruction")
    extra = said.first("input", "context")
    if extra is not None and not isinstance(extra, str):
        said.refuse('"input" is not text', "Put it between quotation marks")
    answer = said.first(*ANSWERS)
    if answer is None:
        said.refuse('has an "instruction" and no "output"', 'Add the answer as "output"')
    asked = {"role": "user", "content": "\n".join(filter(None, (instruction, extra)))}
    return _conversation(said, [*_history(said), asked, *_answered(said, answer)])


def _pair(said: _Said) -> Record:
    question = said.first(*QUESTIONS)
    if question is None:
        said.refuse(f'has a "{said.has(*QUESTIONS)[0]}" that is empty', "Write what is asked")
    answer = said.first(*ANSWERS)
    if answer is None:
        said.refuse('has a "prompt" and no "completion"', 'Add the answer as "completion"')
    if beside := [key for key in said.has(*BESIDE[:-1]) if said.record[key] not in ("", [])]:
        said.refuse(f'has "{beside[0]}" beside a question', f'Write the "{beside[0]}" into the question')
    return _conversation(said, [*_history(said), *_asked(said, question), *_answered(said, answer)])


def _preference(said: _Said) -> Record:
    if said.has("preferred_output"):
        inner = said.get("input")
        if not isinstance(inner, dict):
            said.refuse('has no "input" with messages', 'Right would be {"input": {"messages": […]}, …}')
        said.get("non_preferred_output")
        _refuse_unwanted(said)
        before = _read_only(messages_of(inner.get("messages"), said.source, "input.messages"))
        tools = {"tools": inner["tools"]} if inner.get("tools") else {}
        answer = _answered(said, said.parsed("preferred_output"))
        return _with_tools({"messages": [*before, *answer], **tools}, said)
    chosen, rejected = said.get("chosen"), said.get("rejected")
    if chosen is None:
        said.refuse('has "rejected" and no "chosen"', 'Add the answer to learn as "chosen"')
    asked = said.parsed(key) if (key := next(iter(said.has(*SHAREGPT_LISTS)), "")) else said.first(*QUESTIONS)
    if isinstance(chosen, str):
        if asked is None:
            return _conversation(said, _human_and_assistant(said, chosen, rejected))
        return _conversation(said, [*_asked(said, asked), *_answered(said, chosen)])
    answers = messages_of(chosen if isinstance(chosen, list) else [chosen], said.source, "chosen")
    first = answers[0]
    if asked is not None and isinstance(first, dict) and first.get("role") == "assistant":
        return _conversation(said, [*_asked(said, asked), *answers])
    other = messages_of(rejected, said.source, "rejected") if isinstance(rejected, list) else []
    shared = next(
        (n for n, pair in enumerate(zip(answers, other, strict=False)) if pair[0] != pair[1]),
        len(answers) - 1,
    )
    return _conversation(said, [*_read_only(answers[:shared]), *answers[shared:]])


def _human_and_assistant(said: _Said, chosen: str, rejected: Any) -> list[Any]:
    """Anthropic's HH: one text of turns that begin with "Human:" and "Assistant:"; the last is learnt."""
    pieces = re.split(r"(?:^|\n\n)(Human|Assistant): ?", chosen)
    if pieces[0].strip() or len(pieces) < 5:
        said.refuse('has "chosen" and no "prompt"', 'Write what is asked as "prompt"')
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[who], "content": text.strip()}
        for who, text in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    return [*_read_only(turns[:-1]), turns[-1]]


def _asked(said: _Said, asked: Any) -> list[Any]:
    if isinstance(asked, list):
        return _read_only(messages_of(asked, said.source, "prompt"))
    return [{"role": "user", "content": _text_of(said, asked, *QUESTIONS)}]


def _answered(said: _Said, answer: Any) -> list[Any]:
    if isinstance(answer, list):
        return messages_of(answer, said.source, "completion")
    return [{"role": "assistant", "content": _text_of(said, answer, *ANSWERS, *PREFERENCES)}]


def _history(said: _Said) -> list[Any]:
    """Earlier turns, as pairs of question and answer."""
    turns: list[Any] = []
    history = said.parsed("history") or []
    for pair in history if isinstance(history, list) else [None]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            said.refuse('"history" is not a list of pairs', "Right would be [[question, answer], …]")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def _conversation(said: _Said, messages: list[Any]) -> Record:
    """With the record's system message and tools. Raises InvalidInput for an answer that was labelled unwanted."""
    _refuse_unwanted(said)
    system = said.first(*SYSTEMS)
    if system is not None:
        if any(isinstance(each, dict) and each.get("role") == "system" for each in messages):
            said.refuse('has "system" and a system message', "Keep one of them")
        messages = [{"role": "system", "content": system}, *messages]
    tools = said.parsed("tools") or said.parsed("functions")
    return _with_tools({"messages": messages, **({"tools": tools} if tools else {})}, said)


def _refuse_unwanted(said: _Said) -> None:
    """By KTO's label, as JSON and tables write it; another label says nothing about being wanted, and is not used."""
    label = str(said.record.get("label")).strip().lower()
    if label in UNWANTED:
        said.refuse(f'has the label "{label}", so its answer is not to be learnt', "Leave such examples out")
    if label in WANTED:
        said.get("label")


def _with_tools(made: Record, said: _Said) -> Record:
    if isinstance(made.get("tools"), list):
        made["tools"] = [_tool(each) for each in made["tools"]]
    return made


def _tool(tool: Any) -> Any:
    """{"type": "function", "function": {…}} of a function alone, too, whoever's."""
    if not isinstance(tool, dict) or "function" in tool or not isinstance(tool.get("name"), str):
        return tool
    function = {key: value for key, value in tool.items() if key != "type"}
    if "input_schema" in function:
        function["parameters"] = function.pop("input_schema")
    return {"type": "function", "function": function}


def messages_of(messages: Any, source: str, label: str) -> list[Any]:
    """Each message with "role" and "content", calls as "tool_calls" with their arguments as text.

    What is no message is left for who checks them.
    """
    if not isinstance(messages, list) or not messages:
        raise fault(
            source, f'"{label}" is not a list of messages', 'Right would be [{"role": …, "content": …}, …]'
        )
    return [
        _message(each, f"{source}: {label}[{n}]") if isinstance(each, dict) else each
        for n, each in enumerate(messages)
    ]


def _message(message: Record, source: str) -> Record:
    made = dict(message)
    for old, new in (("from", "role"), ("value", "content")):
        if old in made and new not in made:
            made[new] = made.pop(old)
    role = made.get("role")
    if role == "function_call":
        made |= {"role": "assistant", "content": None, "tool_calls": made.get("content")}
    elif isinstance(role, str):
        made["role"] = ROLES.get(role, role)
    reasons = [key for key in REASONINGS if made.get(key)]
    if len(reasons) > 1:
        raise fault(source, f'has both "{reasons[0]}" and "{reasons[1]}"', "Keep one of them")
    if reasons:
        made[REASONING] = made.pop(reasons[0])
    if old := made.pop("function_call", None):
        if made.get("tool_calls"):
            raise fault(source, 'has both "function_call" and "tool_calls"', "Keep one of them")
        made["tool_calls"] = [old]
    if made.get("tool_calls") in ([], "", "[]"):
        del made["tool_calls"]
    if calls := made.get("tool_calls"):
        calls = unpacked_json(calls, f'{source}: "tool_calls" is not a list of calls:')
        made["tool_calls"] = [_call(each, source) for each in (calls if isinstance(calls, list) else [calls])]
        if made.get("content") == "":
            made["content"] = None
    for key in MEDIA:
        if made.get(key) not in (None, "", []):
            raise fault(source, f'has "{key}"', "Only text is learnt: leave such examples out")
    return made


def _call(call: Any, source: str) -> Any:
    """{"type": "function", "function": {"name": …, "arguments": "{…}"}} of a call in any of its forms.

    Raises InvalidInput for arguments that are text and no JSON.
    """
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif isinstance(arguments, str) and arguments.strip():
        made = unpacked_json(arguments, f"{source}: a call's arguments", "an object's JSON")
        if not isinstance(made, dict):
            raise fault(source, "has a call whose arguments are no object", "Write them as an object's JSON")
    outer = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {
        **outer,
        "type": "function",
        "function": {"name": function.get("name"), "arguments": "{}" if arguments is None else arguments},
    }


def _read_only(messages: Iterable[Any]) -> list[Any]:
    """Those of a prompt: its answers are not learnt, unless they say so."""
    return [
        {"weight": 0, **each} if isinstance(each, dict) and each.get("role") == "assistant" else each
        for each in messages
    ]


def _text_of(said: _Said, value: Any, *keys: str) -> str:
    """The value of one of ``keys``."""
    if not isinstance(value, str):
        key = next((key for key in keys if said.record.get(key) is value), "")
        key = key or next(
            (key for key in keys if said.record.get(key) is not None), keys[0]
        )  # it was JSON in a text
        said.refuse(f'"{key}" is no text', "Put it between quotation marks")
    return value


def unpacked_json(value: Any, where: str, right: str = "a list, or its JSON") -> Any:
    """Of a text, as tables hold lists, the JSON in it. Raises InvalidInput that begins with ``where``."""
    if not isinstance(value, str) or not value.strip():
        return value or None
    try:
        return strict_json(value)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{where} is text that is not JSON ({error}). Right would be {right}",
            param="training_file",
        ) from None


def strict_json(text: str) -> Any:
    """Raises ValueError, also for a key that an object has twice and for NaN; RecursionError."""
    return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)


def _object(pairs: list[tuple[str, Any]]) -> Record:
    made = dict(pairs)
    if len(made) < len(pairs):
        times = Counter(key for key, _ in pairs)
        double = next(key for key, count in times.items() if count > 1)
        raise ValueError(f'the key "{double[:80]}" comes twice')
    return made


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def fault(source: str, wrong: str, right: str) -> InvalidInput:
    return InvalidInput(f"{source}: {wrong}. {right}", param="training_file")
