"""Validated OpenAI requests to generations, for one model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Protocol

from everlearn.errors import InvalidInput, Unsupported
from serve.engines.chat_template import ChatTemplate
from serve.engines.context_bound import ContextLengthExceeded
from serve.engines.grammar import grammar_of, must_call, offered_tools
from serve.engines.onnx.decoding.constraint import Constraint, Constraints
from serve.engines.onnx.decoding.decoder import DecoderConfig, SamplingDefaults
from serve.engines.onnx.decoding.generation import Generation
from serve.engines.onnx.decoding.sampling import SamplingOptions
from serve.engines.tokenizer import TextCodec
from serve.protocol.chat import ChatRequest
from serve.protocol.completions import CompletionRequest
from serve.protocol.sampling import SamplingFields

COMPLETION_TOKENS = 16
"""OpenAI's default max_tokens of /v1/completions."""


class Model(Protocol):
    """What is known of one whose tokens are sampled."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_ids(self) -> list[int]: ...

    @property
    def defaults(self) -> SamplingDefaults: ...


class CompletionReader:
    """Turns requests for completions into generations; everything here is pure CPU work on text."""

    def __init__(
        self, codec: TextCodec, config: Model, context: int, *, scores: bool = True, most_answers: int = 0
    ) -> None:
        self.config = config
        self.most_answers = most_answers
        """How many one request may ask for; 0: any number."""
        self.scores = scores
        self.context = context
        self.codec = codec

    def completion(self, request: CompletionRequest, salt: str = "") -> list[Generation]:
        """One generation per prompt and choice, a prompt's choices together."""
        if request.echo and request.logprobs is not None and not self.scores:
            raise Unsupported(
                "this version computes no log-probabilities of a prompt (its graph has the last position alone)",
                param="echo",
            )
        prompts = self._prompts(request.prompt, request.n or 1)
        wanted = COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
        limit = self._new_tokens("prompt", prompts, wanted)
        return self._generations(
            request, prompts, limit, request.logprobs, salt=salt, echo=bool(request.echo)
        )

    def _prompts(self, prompt: Any, choices: int) -> list[list[int]]:
        """The tokens of each prompt. Nothing is tokenized where they are more than can be answered."""
        several = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
        if self.most_answers and len(several) * choices > self.most_answers:
            raise InvalidInput(
                f"{len(several)} prompts with n = {choices} ask for {len(several) * choices} answers; at most "
                f"{self.most_answers} fit the engine's queue",
                param="prompt",
            )
        prompts: list[list[int]] = []
        for one in several:
            tokens = self.codec.encode(one) if isinstance(one, str) else one
            prompts.append(tokens)
            if len(tokens) > self.context:
                break
        for tokens in prompts:
            if not tokens:
                raise InvalidInput("prompt is empty; give at least one token", param="prompt")
            if max(tokens) >= self.config.vocab_size:
                raise InvalidInput(
                    f"prompt has token {max(tokens)}; the vocabulary ends at {self.config.vocab_size - 1}",
                    param="prompt",
                )
        return prompts

    def _new_tokens(self, param: str, prompts: list[list[int]], wanted: int | None) -> int:
        longest = max(len(prompt) for prompt in prompts)
        if longest + (1 if wanted is None else wanted) > self.context:
            asked = f" and {wanted} for the answer" if wanted else ""
            raise ContextLengthExceeded(
                f"this model's context is {self.context} tokens; the request has {longest} in {param}{asked}",
                param=param,
            )
        return self.context - longest if wanted is None else wanted

    def _generations(
        self,
        request: SamplingFields,
        prompts: list[list[int]],
        limit: int,
        top_logprobs: int | None,
        constraint: Constraint | None = None,
        **more: Any,
    ) -> list[Generation]:
        seed = random.getrandbits(63) if request.seed is None else request.seed % 2**63
        bias = self._logit_bias(request)
        defaults = self.config.defaults
        return [
            Generation(
                prompt,
                codec=self.codec,
                eos_ids=self.config.eos_ids,
                options=SamplingOptions(
                    temperature=defaults.temperature if request.temperature is None else request.temperature,
                    top_p=request.top_p or defaults.top_p,
                    top_k=defaults.top_k if request.top_k is None else request.top_k,
                    min_p=request.min_p or 0.0,
                    seed=seed + choice,
                    presence_penalty=request.presence_penalty or 0.0,
                    frequency_penalty=request.frequency_penalty or 0.0,
                    logit_bias=bias,
                    top_logprobs=top_logprobs,
                ),
                max_new_tokens=limit,
                stop=request.stop or [],
                constraint=constraint.copy() if constraint else None,
                flexible=request.service_tier == "flex",
                seeded=request.seed is not None,
                **more,
            )
            for prompt in prompts
            for choice in range(request.n or 1)
        ]

    def _logit_bias(self, request: SamplingFields) -> dict[int, float]:
        bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
        if bias and max(bias) >= self.config.vocab_size:
            raise InvalidInput(
                f"logit_bias has token {max(bias)}; the vocabulary ends at {self.config.vocab_size - 1}",
                param="logit_bias",
            )
        return bias


class RequestReader(CompletionReader):
    """Those for chats as well."""

    def __init__(
        self, bundle: Path, config: DecoderConfig, context: int, *, scores: bool = True, most_answers: int = 0
    ) -> None:
        codec = TextCodec(bundle, config.vocab_size, context)
        super().__init__(codec, config, context, scores=scores, most_answers=most_answers)
        self.template = ChatTemplate(bundle, self.codec)
        self.constraints = Constraints(self.codec, config.eos_ids)

    def chat(self, request: ChatRequest, salt: str = "") -> list[Generation]:
        """One generation per choice; raises InvalidInput naming the parameter at fault.

        `salt`: whose it is; only requests of one salt share what was computed.
        """
        tools = offered_tools(request)
        prompt = self.template.encode(request.messages, tools)
        limit = self._new_tokens("messages", [prompt], request.max_new_tokens)
        top_logprobs = (request.top_logprobs or 0) if request.logprobs else None
        grammar = grammar_of(request)
        constraint = self.constraints.compile(grammar.lark, grammar.param) if grammar else None
        return self._generations(
            request,
            [prompt],
            limit,
            top_logprobs,
            constraint=constraint,
            salt=salt,
            left_open=grammar.left_open if grammar else (),
            tools=[tool.function.name for tool in tools],
            must_call=must_call(request),
            json=bool(grammar and grammar.json),
        )
