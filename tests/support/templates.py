"""Tokenizers and chat templates of the kinds that models come with: each has the structure of its kind, in few words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

ENDOFTEXT = "<|endoftext|>"


def write_tokenizer(
    folder: Path,
    special: Sequence[str],
    template: str | None,
    *,
    eos: str | None = ENDOFTEXT,
    bos: str | None = None,
    added: Sequence[str] = (),
) -> dict[str, int]:
    """A tokenizer of bytes with the ``special`` tokens, and ``added`` ones that it does not call special; their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: id for id, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"eos_token": eos, "bos_token": bos, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return {token: tokenizer.token_to_id(token) for token in (*special, *added)}


def write_generation_config(folder: Path, ids: int | list[int]) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))


@dataclass(frozen=True)
class Kind:
    """A kind of template; what is learnt of two answers ``B`` and ``D``, each with its end."""

    template: str
    special: tuple[str, ...]
    stops: tuple[str, ...]
    learnt: tuple[str, ...]
    added: tuple[str, ...] = ()
    eos: str | None = ENDOFTEXT
    bos: str | None = None
    note: str | None = None
    examples: int = 1


def turns(each: str, prompt: str = "", first: str = "", last: str = "") -> str:
    return (
        f"{first}{{% for m in messages %}}{each}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{prompt}{{% else %}}{last}{{% endif %}}"
    )


NO_SYSTEM = "{% if m.role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
GEMMA_ROLE = "{{ 'model' if m.role == 'assistant' else m.role }}"
INST = "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %}"
CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
CHATML_PROMPT = "<|im_start|>assistant\n"
FORGETFUL = (
    "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n"
)
CHATML_TOKENS = (ENDOFTEXT, "<|im_start|>", "<|im_end|>")
IM = ("<|im_end|>", ENDOFTEXT)
ENDED = ("B<|im_end|>", "D<|im_end|>")
NEVER = "writes no token that ends an answer"

KINDS: dict[str, Kind] = {
    "chatml of a base model, as Qwen 2.5": Kind(turns(CHATML, CHATML_PROMPT), CHATML_TOKENS, IM, ENDED),
    "with a system prompt of its own": Kind(
        turns(CHATML, CHATML_PROMPT, "<|im_start|>system\nHelp.<|im_end|>\n"), CHATML_TOKENS, IM, ENDED
    ),
    "with reasoning for the last answer, as Qwen 3": Kind(
        turns(FORGETFUL, CHATML_PROMPT), CHATML_TOKENS, IM,
        ("<think>\n\n</think>\n\nB<|im_end|>", "<think>\n\n</think>\n\nD<|im_end|>"),
        added=("<think>", "</think>"), examples=2,
    ),
    "an end token that the tokenizer does not call special": Kind(
        turns(CHATML, CHATML_PROMPT), CHATML_TOKENS[:2], IM, ENDED, added=("<|im_end|>", "\n", "B")
    ),
    "that always opens an answer": Kind(
        turns(CHATML, last=CHATML_PROMPT, prompt=CHATML_PROMPT), CHATML_TOKENS, IM, ENDED
    ),
    "headers, as Llama 3": Kind(
        turns(
            "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n", "{{ bos_token }}",
        ),
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", ENDOFTEXT),
        ("<|eot_id|>", ENDOFTEXT), ("B<|eot_id|>", "D<|eot_id|>"), bos="<|begin_of_text|>",
    ),
    "without a system message, as Gemma": Kind(
        turns(
            NO_SYSTEM + "<start_of_turn>" + GEMMA_ROLE + "\n{{ m.content }}<end_of_turn>\n",
            "<start_of_turn>model\n", "{{ bos_token }}",
        ),
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), ("<end_of_turn>", "<eos>"),
        ("B<end_of_turn>", "D<end_of_turn>"), eos="<eos>", bos="<bos>", added=("\n", "\n\n"),
    ),
    "with an end of text behind the last turn, as Phi": Kind(
        turns("<|{{ m.role }}|>\n{{ m.content }}<|end|>\n", "<|assistant|>\n", last="{{ eos_token }}"),
        (ENDOFTEXT, "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        ("<|end|>", ENDOFTEXT), ("B<|end|>", "D<|end|>"),
    ),
    "ends by eos, as Zephyr": Kind(
        turns("<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n", "<|assistant|>\n"),
        ("<s>", "</s>"), ("</s>",), ("B</s>", "D</s>"), eos="</s>", bos="<s>",
    ),
    "[INST], as Mistral": Kind(
        turns(INST + " {{ m.content }}{{ eos_token }}{% endif %}", first="{{ bos_token }}"),
        ("<s>", "</s>"), ("</s>",), (" B</s>", " D</s>"), eos="</s>", bos="<s>",
    ),
    "[INST] whose eos comes with the next question": Kind(
        turns(
            "{% if m.role == 'user' and loop.index > 2 %}{{ eos_token }}{{ bos_token }}{% endif %}"
            + INST + " {{ m.content }}{% endif %}", first="{{ bos_token }}",
        ),
        ("<s>", "</s>"), ("</s>",), (" B</s>", " D</s>"), eos="</s>", bos="<s>",
    ),
    "[INST] without any end": Kind(
        turns(INST + " {{ m.content }}{% endif %}"),
        ("<s>", "</s>"), ("</s>",), (" B</s>", " D</s>"), eos="</s>", bos="<s>", note=NEVER, examples=2,
    ),
    "that closes a turn with the next one": Kind(
        turns(
            "{% if not loop.first %}<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}",
            "<|im_end|>\n" + CHATML_PROMPT,
        ),
        CHATML_TOKENS, IM, ENDED,
    ),
    "roles that end the one before, as GLM": Kind(
        turns("<|{{ m.role }}|>\n{{ m.content }}", "<|assistant|>\n", "[gMASK]<sop>"),
        (ENDOFTEXT, "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        ("<|user|>", ENDOFTEXT), ("B<|user|>", "D<|user|>"),
    ),
    "with marks around the answer, as Cohere": Kind(
        turns(
            "<|TURN|><|{{ m.role | upper }}|>{% if m.role == 'assistant' %}<|START|>{{ m.content }}<|STOP|>"
            "{% else %}{{ m.content }}{% endif %}<|END_OF_TURN|>", "<|TURN|><|ASSISTANT|><|START|>",
        ),
        (ENDOFTEXT, "<|TURN|>", "<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>", "<|START|>", "<|STOP|>", "<|END_OF_TURN|>"),
        ("<|END_OF_TURN|>", ENDOFTEXT), ("B<|STOP|><|END_OF_TURN|>", "D<|STOP|><|END_OF_TURN|>"),
    ),
    "without line breaks, as DeepSeek": Kind(
        turns(
            "{% if m.role == 'user' %}<\uff5cUser\uff5c>{{ m.content }}{% elif m.role == 'assistant' %}"
            "<\uff5cAssistant\uff5c>{{ m.content }}<\uff5cend\u2581of\u2581sentence\uff5c>{% else %}{{ m.content }}{% endif %}",
            "<\uff5cAssistant\uff5c>", "{{ bos_token }}",
        ),
        ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),
        ("<\uff5cend\u2581of\u2581sentence\uff5c>",), ("B<\uff5cend\u2581of\u2581sentence\uff5c>", "D<\uff5cend\u2581of\u2581sentence\uff5c>"),
        eos="<\uff5cend\u2581of\u2581sentence\uff5c>", bos="<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    ),
    "one token that begins and ends, as OLMo": Kind(
        turns(
            "<|{{ m.role }}|>\n{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n",
            "<|assistant|>\n", "{{ bos_token }}",
        ),
        (ENDOFTEXT,), (ENDOFTEXT,), ("B" + ENDOFTEXT, "D" + ENDOFTEXT), bos=ENDOFTEXT,
    ),
    "eos behind the last answer only": Kind(
        turns("{{ m.role | upper }}: {{ m.content }}\n", "ASSISTANT: ", last="{{ eos_token }}"),
        (ENDOFTEXT,), (ENDOFTEXT,), ("B\n" + ENDOFTEXT, "D\n" + ENDOFTEXT), examples=2,
    ),
    "role names in words": Kind(
        turns("### {{ m.role }}\n{{ m.content }}\n\n", "### assistant\n"),
        (ENDOFTEXT,), (ENDOFTEXT,), ("B" + ENDOFTEXT, "D" + ENDOFTEXT), note=NEVER, examples=2,
    ),
    "markup that the tokenizer has no token for": Kind(
        turns(CHATML, CHATML_PROMPT), (ENDOFTEXT,), (ENDOFTEXT,), ("B" + ENDOFTEXT, "D" + ENDOFTEXT),
        note=NEVER, examples=2,
    ),
    "no end token at all": Kind(
        turns("### {{ m.role }}\n{{ m.content }}\n\n", "### assistant\n"),
        ("<unk>",), (), ("B\n\n", "D\n\n"), eos=None, note="answers end at max_tokens or a stop string alone",
    ),
}  # fmt: skip


def write_kind(folder: Path, kind: Kind) -> dict[str, int]:
    return write_tokenizer(folder, kind.special, kind.template, eos=kind.eos, bos=kind.bos, added=kind.added)


def chat(*said: str) -> list[dict[str, Any]]:
    """Questions and answers in turn."""
    return [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(said)]
