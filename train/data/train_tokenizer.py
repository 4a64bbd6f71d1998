"""A tokenizer of one's own: byte-level BPE, so that no text has a character it cannot write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from everlearn.bundles.durable import move_directory, sync_tree
from everlearn.errors import Conflict, InvalidInput
from train.data.cleaning.clean import cleaned, said
from train.data.options import DataOptions
from train.data.reading.forms import UnknownForm
from train.data.reading.read import Limits, read_examples
from train.data.reading.sources import Source, expand

TEXT_END, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (TEXT_END, START, END)
BYTES = 256
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, as SmolLM2 and Qwen speak it, without a system message of its own."""


def train_tokenizer(
    sources: Sequence[Path | Source], vocab_size: int, out: Path, options: DataOptions | None = None
) -> None:
    """Learns ``vocab_size`` tokens from the texts of files, or folders of them, as ``prepare`` reads and cleans them, and writes a Hugging Face tokenizer directory.

    Digits stand alone, as in SmolLM2. Texts and answers both end with <|im_end|>. The same files give the same
    bytes; ``out`` appears whole. Raises InvalidInput for a broken file, or where the texts hold too few words for
    that many tokens, and Conflict where ``out`` exists.
    """
    if vocab_size < BYTES + len(SPECIAL):
        raise InvalidInput(
            f"vocab_size is {vocab_size}; bytes and special tokens alone are {BYTES + len(SPECIAL)}"
        )
    if out.exists():
        raise Conflict(f"{out} exists already: remove it, or choose another folder")
    options = options or DataOptions()
    files, _ = expand(sources)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(files, options), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise InvalidInput(
            f"the texts give {tokenizer.get_vocab_size()} tokens, not {vocab_size}: "
            "add texts, or ask for a smaller vocabulary",
            param="vocab_size",
        )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer.save(str(partial / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": TEXT_END,
        "clean_up_tokenization_spaces": False,
    }
    (partial / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    (partial / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    sync_tree(partial)
    move_directory(partial, out)


def _texts(files: Sequence[Source], options: DataOptions) -> Iterator[str]:
    for file in files:
        limits = Limits(max_line_bytes=options.max_line_bytes, min_examples=0 if file.found else 1)
        count = 0
        try:
            for raw in read_examples(file.path, kind=options.kind, limits=limits, name=file.name):
                count += 1
                yield said(cleaned(raw, options))
        except UnknownForm:
            if not file.found or count:
                raise
