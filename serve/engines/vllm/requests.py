"""Translate the gateway's requests to vLLM's spelling; what vLLM does not do is refused by name."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from everlearn.chat.stops import unnamed_stops
from everlearn.chat.template import describe_tools
from everlearn.errors import InvalidInput, Unsupported
from serve.engines.calls import Reading
from serve.engines.chat_template import ChatTemplate, signature, texts_in
from serve.engines.compile_check import COMPILE_CHECK
from serve.engines.context_bound import PROBE_CHARACTERS
from serve.engines.grammar import grammar_of, must_call, offered_tools
from serve.engines.tokenizer import TextCodec, whole
from serve.protocol.chat import ChatRequest, Message, Tool, ToolMessage
from serve.protocol.completions import CompletionRequest
from serve.protocol.parsing import parse
from serve.protocol.sampling import SamplingFields
from serve.protocol.tokens import DetokenizeRequest, TokenizeRequest

Body = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What vLLM is asked, how an answer of it is read where it may hold calls, and what no grammar enforces."""

    body: Body
    reading: Callable[[], Reading] | None = None
    left_open: tuple[str, ...] = ()


MAX_STOPS = 4


class Requests:
    """Bodies for vLLM, made of validated ones, for one bundle."""

    def __init__(self, bundle: Path, speculative: bool = False, context: int | None = None) -> None:
        self.speculative = speculative
        config = json.loads((bundle / "config.json").read_text())
        text = config.get("text_config", config)
        self.codec = TextCodec(bundle, text["vocab_size"], context or text["max_position_embeddings"])
        self.template = ChatTemplate(bundle, self.codec)
        self.stop_ids = unnamed_stops(bundle)
        self.defaults = {"temperature": 1.0, "top_p": 1.0} | _defaults(bundle)

    def chat(self, body: bytes) -> Asked:
        """POST /v1/chat/completions; raises InvalidInput and Unsupported naming the parameter at fault.

        With tools vLLM is asked for text: what of it is a call is read here, as for the ONNX engine, and stop strings
        are looked for here, since vLLM would cut calls by them.
        """
        request = parse(ChatRequest, body)
        tools = offered_tools(request)
        if len(body) > PROBE_CHARACTERS:
            self.template.encode(request.messages, tools)  # raises where it cannot fit
        grammar = grammar_of(request)
        changes = self._prompt(request.messages, request.tools, tools) | self._sampling(request)
        if grammar:
            changes |= compiled(grammar.lark, grammar.param)
        dropped = {
            "tools",
            "tool_choice",
            "parallel_tool_calls",
            "response_format",
            "messages",
            "service_tier",
        }
        reading = None
        if tools:
            changes["tool_choice"] = "none"
            dropped.add("stop")
            names = [tool.function.name for tool in tools]
            reading = partial(Reading, request.stop or [], names, must_call=must_call(request))
        else:
            bound_stops(request)
        asked = request.model_dump(exclude_unset=True, exclude=dropped) | changes | counting(request)
        return Asked(asked, reading, grammar.left_open if grammar else ())

    def completion(self, body: bytes) -> Asked:
        """POST /v1/completions."""
        request = parse(CompletionRequest, body)
        if len(body) > PROBE_CHARACTERS:
            for prompt in request.prompt if isinstance(request.prompt, list) else [request.prompt]:
                if isinstance(prompt, str):
                    self.codec.encode(prompt)
        bound_stops(request)
        asked = request.model_dump(exclude_unset=True, exclude={"service_tier"})
        return Asked(asked | self._sampling(request) | counting(request))

    def sampled(self, asked: Body) -> dict[str, float]:
        """The temperature and top_p that vLLM samples the answer to such a body with."""
        return {
            name: value if asked.get(name) is None else asked[name] for name, value in self.defaults.items()
        }

    def tokenize(self, body: bytes) -> Asked:
        """POST /tokenize: what the chat or the completion would be asked with."""
        request = parse(TokenizeRequest, body)
        asked = request.model_dump(exclude_unset=True, exclude={"messages", "tools", "tool_choice"})
        if request.messages is None:
            self.codec.bound.check([whole(request.prompt or "")], "prompt")
            return Asked(asked)
        return Asked(asked | self._prompt(request.messages, request.tools, offered_tools(request)))

    def detokenize(self, body: bytes) -> Asked:
        """POST /detokenize."""
        return Asked(parse(DetokenizeRequest, body).model_dump())

    def _sampling(self, request: SamplingFields) -> Body:
        if self.speculative:
            for name in ("min_p", "logit_bias"):
                if getattr(request, name):
                    raise Unsupported(
                        f"vLLM has no {name} while it guesses ahead (vllm.speculative_tokens)", param=name
                    )
        return sampling(request) | ({"stop_token_ids": self.stop_ids} if self.stop_ids else {})

    def _prompt(self, messages: list[Message], known: list[Tool] | None, offered: list[Tool]) -> Body:
        """Messages and tools as vLLM's template takes them; of the tools that are known some may be on offer."""
        if self.template.template is None:
            raise Unsupported("this model has no chat template; use /v1/completions", param="messages")
        self._refuse_control_tokens(messages, known or [])
        plain = [self._message(message) for message in messages]
        if not offered:
            return {"messages": plain}
        signatures = [signature(tool) for tool in offered]
        if not self.template.knows_tools:
            plain = describe_tools(plain, signatures)
        return {"messages": plain, "tools": signatures}

    def _message(self, message: Message) -> Body:
        """As templates expect it; vLLM itself turns the arguments of earlier tool calls into objects.

        Arguments that are no JSON, or nested too deep, are a text here, and to vLLM no arguments.
        """
        plain = self.template.plain(message)
        if "tool_calls" in plain:
            plain["tool_calls"] = [
                given
                | {"function": given["function"] | {"arguments": json.dumps(read["function"]["arguments"])}}
                for given, read in zip(
                    message.model_dump(exclude_unset=True)["tool_calls"], plain["tool_calls"], strict=True
                )
            ]
        if isinstance(message, ToolMessage) and self.template.knows_tools:
            plain["tool_call_id"] = message.tool_call_id
        return plain

    def _refuse_control_tokens(self, messages: list[Message], tools: list[Tool]) -> None:
        """vLLM would read a control token's name inside a message as the token: a client could forge a role."""
        for index, message in enumerate(messages):
            if found := self._control(self.template.plain(message)):
                raise InvalidInput(
                    f"messages[{index}] holds {found!r}, which vLLM would read as this model's control "
                    "token; leave it out, or use an ONNX version, whose engine takes it as text",
                    param=f"messages[{index}].content",
                )
        if found := self._control([tool.model_dump() for tool in tools]):
            raise InvalidInput(f"tools hold {found!r}, a control token of this model", param="tools")

    def _control(self, value: Any) -> str | None:
        texts = list(texts_in(value))
        return next((name for name in self.codec.special if any(name in text for text in texts)), None)


def _defaults(bundle: Path) -> dict[str, float]:
    """What the model's own generation_config.json says, which vLLM goes by."""
    file = bundle / "generation_config.json"
    config = json.loads(file.read_text()) if file.exists() else {}
    return {name: config[name] for name in ("temperature", "top_p") if config.get(name) is not None}


def bound_stops(request: SamplingFields) -> None:
    """Where vLLM itself looks for them. Raises Unsupported."""
    if len(request.stop or ()) > MAX_STOPS:
        raise Unsupported(f"vLLM takes at most {MAX_STOPS} stop sequences", param="stop")


def counting(request: SamplingFields) -> Body:
    """Usage in every chunk, since the first one tells the length of the prompt."""
    if not request.include_usage:
        return {}
    return {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def sampling(request: SamplingFields) -> Body:
    """The parameters whose meaning or range is another one in vLLM."""
    changes: Body = {}
    if (request.n or 1) > 1 and request.temperature == 0:
        raise Unsupported("n above 1 at temperature 0 gives equal answers, and vLLM refuses it", param="n")
    if request.seed is not None:
        changes["seed"] = request.seed % 2**63
    if request.service_tier == "flex":
        changes["priority"] = 1  # after those of 0
    return changes


def compiled(lark: str, param: str) -> Body:
    """A Lark grammar that compiles; raises InvalidInput naming `param` for one that does not."""
    failed, messages = COMPILE_CHECK.validate(lark)
    if failed:
        raise InvalidInput(f"{param} cannot be compiled: {messages[0][:500]}", param=param)
    return {"structured_outputs": {"grammar": lark}}
