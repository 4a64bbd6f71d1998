"""Anthropic's event stream, read strictly: any event out of the documented order fails."""

import json
from typing import Any


def events_of(text: str) -> list[dict[str, Any]]:
    """Each event's data, whose type must be the event's name."""
    assert text.endswith("\n\n")
    found = []
    for event in text[:-2].split("\n\n"):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def message_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a complete stream builds up."""
    first, *rest = events
    assert first["type"] == "message_start"
    message = first["message"]
    assert message["content"] == [] and message["stop_reason"] is None
    arguments = ""
    while rest[0]["type"] == "content_block_start":
        start = rest.pop(0)
        assert start["index"] == len(message["content"])
        block, arguments = start["content_block"], ""
        while (event := rest.pop(0))["type"] == "content_block_delta":
            assert event["index"] == start["index"]
            delta = event["delta"]
            if block["type"] == "text":
                assert delta.keys() == {"type", "text"} and delta["type"] == "text_delta"
                block["text"] += delta["text"]
            else:
                assert delta.keys() == {"type", "partial_json"} and delta["type"] == "input_json_delta"
                arguments += delta["partial_json"]
        assert event == {"type": "content_block_stop", "index": start["index"]}
        if block["type"] == "tool_use":
            assert block["input"] == {}
            block["input"] = json.loads(arguments or "{}")
        message["content"].append(block)
    delta, stop = rest
    assert delta["type"] == "message_delta" and stop == {"type": "message_stop"}
    return message | delta["delta"] | {"usage": message["usage"] | delta["usage"]}
