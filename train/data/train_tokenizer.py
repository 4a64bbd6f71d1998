"""A tokenizer of one's own, from the texts that a model is trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from everlearn.bundles.durable import move_directory, sync_tree
from everlearn.errors import Conflict
from train.data.cleaning.clean import cleaned, said
from train.data.cleaning.cleaner import Cleaner
from train.data.options import DataOptions, TokenizerOptions
from train.data.reading.forms import UnknownForm
from train.data.reading.read import Limits, read_examples
from train.data.reading.sources import Source, Sources, expand
from train.data.tokenizer_kinds import learn


def train_tokenizer(
    sources: Sources,
    vocab_size: int,
    out: Path,
    options: DataOptions | None = None,
    kind: TokenizerOptions | None = None,
) -> None:
    """Learns ``vocab_size`` tokens from the texts of files, or folders of them, as ``prepare`` reads and cleans them, and writes a Hugging Face tokenizer directory.

    ``kind``: byte-level BPE by default; see ``train.data.tokenizer_kinds``. The same files give the same bytes;
    ``out`` appears whole. Raises InvalidInput for a broken file, or where the texts hold too few words for that many
    tokens, and Conflict where ``out`` exists.
    """
    if out.exists():
        raise Conflict(f"{out} exists already: remove it, or choose another folder")
    options = options or DataOptions()
    files, _ = expand(sources)
    learnt = learn(lambda: _texts(files, options), vocab_size, kind or TokenizerOptions())
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "tokenizer.json").write_text(learnt.tokenizer, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **learnt.config,
        "clean_up_tokenization_spaces": False,
    }
    (partial / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    if learnt.chat_template:
        (partial / "chat_template.jinja").write_text(learnt.chat_template)
    sync_tree(partial)
    move_directory(partial, out)


def _texts(files: Sequence[Source], options: DataOptions) -> Iterator[str]:
    cleaner = Cleaner(options)
    for file in files:
        limits = Limits(max_line_bytes=options.max_line_bytes, min_examples=0 if file.found else 1)
        count = 0
        try:
            for raw in read_examples(
                file.path, kind=options.kind, limits=limits, name=file.name, translation=options.translation
            ):
                count += 1
                example = cleaner.clean(raw).example if options.cleans else cleaned(raw, options)
                if example:
                    yield said(example)
        except UnknownForm:
            if not file.found or count:
                raise
