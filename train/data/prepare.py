"""From files to two stores of tokens, one to train on and one to measure with.

read -> clean -> drop duplicates -> split by the document's hash -> tokenize. What is left lies in one folder:
``train/`` and ``held/`` (stores; with ``test_fraction`` ``test/`` too, which no run reads), ``train.jsonl`` and ``held.jsonl`` (the same documents as text, with their hash,
source and tokens), ``card.json`` (every count), ``dropped.jsonl`` (ten examples of each rule). The same files, tokenizer and options give the same bytes. The
folder appears whole; a run that was killed is taken up by the next one where it stood, file by file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import ValidationError

from everlearn.bundles.bundle import FileEntry, file_entry
from everlearn.bundles.durable import move_directory, sync_tree, write_file
from everlearn.errors import Conflict, Corrupt, EverlearnError, InvalidInput, NotFound
from everlearn.progress import Progress, silent
from train.data.card import Change, ComponentCard, DataCard, LabelCard, PartCard, SkippedCard, SourceCard
from train.data.cleaning.boilerplate import without_boilerplate
from train.data.cleaning.cleaner import Cleaner
from train.data.cleaning.duplicates import find_duplicates
from train.data.cleaning.samples import Samples
from train.data.collecting.collect import VERSION, Collected, Collection, images_sha256
from train.data.collecting.collect_all import collect_all, process_count
from train.data.collecting.harm_classifier import without_harmful
from train.data.collecting.name_finder import without_names
from train.data.collecting.second_pass import model_sha256
from train.data.examples import Chat, RawExample, Text
from train.data.labelled.encode import LabelledTokens
from train.data.labelled.example import Labelled
from train.data.labelled.labels import NAMED, Labels, find_labels
from train.data.options import DataOptions
from train.data.reading.forms import RIGHT
from train.data.reading.sources import Skipped, Source, Sources, expand
from train.data.split import HELD, NAMES, TEST, TRAIN, split
from train.data.store import Example, StoreWriter
from train.data.tokenize import Tokens, tokenizing_on

CARD = "card.json"
DROPPED = "dropped.jsonl"
UNKNOWN_LABEL = "label_only_in_test"
NO_TARGET = "no_target_within_max_tokens"
MAX_SKIPPED_NAMES = 50
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


def prepare(
    sources: Sources,
    tokenizer_dir: Path,
    out: Path,
    options: DataOptions | None = None,
    progress: Progress = silent,
    *,
    held: Sequence[Path | str] = (),
    max_unpacked_bytes: int | None = None,
    processes: int | None = None,
) -> DataCard:
    """Prepares ``sources`` (files, folders of them, or URLs) into ``out``; returns at once where that is done already.
    Of a mapping, the store says which examples each of its components has (``StoreCard.components``).

    With ``held`` files, nothing else is held out, and what is like them leaves the training side.
    ``max_unpacked_bytes``: what one file may unpack to, see ``train.data.reading.unpacked``.
    ``processes``: so many read files at once; by default one per core where there is much to read. The bytes are the same.
    ``progress`` is also told what the card says people should know.
    Raises InvalidInput for a broken file (see ``train.data.reading.read``) or when too few documents are left, NotFound
    for a missing one, and Conflict where ``out`` holds something else.
    """
    options = options or DataOptions()
    tokens = Tokens(tokenizer_dir)
    files, skipped = expand(sources, held, progress)
    entries = [file_entry(file.path) for file in files]
    processes = process_count(processes, entries)
    cleaner = Cleaner(options, [file for file in files if file.held])
    images = _images(files, options, progress, max_unpacked_bytes)
    inputs = _inputs_sha256(files, entries, tokens, options, cleaner, images)
    work = work_folder(out)
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / "lock"):
        if out.exists():
            card = read_card(out)
            if card.inputs_sha256 != inputs:
                raise Conflict(
                    f"{out} holds data prepared from other files or options: remove it, or choose another"
                )
        else:
            try:
                collected = collect_all(
                    files, entries, images, options, work, cleaner, progress, max_unpacked_bytes, processes
                )
                if options.boilerplate:
                    collected = without_boilerplate(collected, options, options.boilerplate, work, progress)
                if judge := options.harm_classifier:
                    collected = without_harmful(collected, options, judge, work, progress)
                if (personal := options.personal) and personal.names:
                    collected = without_names(collected, options, personal, work, progress)
                for file, each in zip(files, collected, strict=True):
                    if not each.read:
                        skipped.setdefault("not examples" if each.is_other else "empty", []).append(file.name)
                if options.image_side:
                    _leave_out_pictures(skipped)
                with tokenizing_on(processes):
                    card = _write(
                        files, entries, images, collected, skipped, tokens, options, inputs, work, progress
                    )
                move_directory(work / "result", out)
            except EverlearnError:
                shutil.rmtree(work, ignore_errors=True)  # nothing to go on with: the input must change
                raise
        shutil.rmtree(work, ignore_errors=True)
    for line in card.told():
        progress(line, 1.0)
    return card


def work_folder(out: Path) -> Path:
    """Where what was done lies until ``out`` is whole."""
    return out.with_name(f".{out.name}.preparing")


def read_card(out: Path) -> DataCard:
    """The card of prepared data. Raises NotFound, Corrupt naming the file, or Conflict for an earlier version's."""
    try:
        content = (out / CARD).read_bytes()
        if b'"schema_version": 1,' in content[:200]:
            raise Conflict(
                f"{out} was prepared by an earlier version, by other rules: remove it, and it is prepared anew"
            )
        return DataCard.model_validate_json(content)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{out} is not prepared data: it has no {CARD}") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise Corrupt(f"{out / CARD}: {fault['msg']}", param=CARD) from None


def _images(
    files: list[Source], options: DataOptions, progress: Progress, max_unpacked_bytes: int | None
) -> list[str | None]:
    """Of each file, the digest of the pictures that it holds or names; None of other data."""
    found: list[str | None] = []
    for number, file in enumerate(files):
        if options.image_side:
            progress(f"checking the pictures of {file.name}", 0.1 * number / len(files))
        found.append(images_sha256(file, options, max_unpacked_bytes))
    return found


def _leave_out_pictures(skipped: Skipped) -> None:
    """Pictures beside the records are no files that were skipped."""
    unknown = skipped.pop("of unknown kind", [])
    if others := [name for name in unknown if not name.lower().endswith(PICTURES)]:
        skipped["of unknown kind"] = others


def _inputs_sha256(
    files: list[Source],
    entries: list[FileEntry],
    tokens: Tokens,
    options: DataOptions,
    cleaner: Cleaner,
    images: list[str | None],
) -> str:
    said: dict[str, Any] = {
        "version": VERSION,
        "files": [[file.name, file.held, entry.sha256] for file, entry in zip(files, entries, strict=True)],
        "tokenizer": tokens.sha256,
        "options": options.deciding(),
        **({"given": cleaner.files_sha256} if options.cleans else {}),
        **({"images": images} if options.image_side else {}),
    }
    if judge := options.harm_classifier:
        said["harm_classifier"] = model_sha256(judge.model, "data.harmful.classifier.model")
    if finder := options.name_finder:
        said["name_finder"] = model_sha256(finder.model, "data.personal.names.model")
    if any(file.component for file in files):
        said["components"] = [file.component for file in files]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


FEW_DOCUMENTS = 4096
"""Of so many it is looked up before the split which can be learnt from; of more, enough can."""


BATCH_DOCUMENTS = 256
BATCH_CHARS = 2**20


@dataclass
class _Side:
    """What one side of the split got so far."""

    store: StoreWriter
    documents: int = 0


def _write(
    files: list[Source],
    entries: list[FileEntry],
    images: list[str | None],
    collected: list[Collection],
    skipped: Skipped,
    tokens: Tokens,
    options: DataOptions,
    inputs: str,
    work: Path,
    progress: Progress,
) -> DataCard:
    """Tokenizes what is kept into ``work/result``, flushed to disk."""
    progress("looking for duplicates", 0.6)
    sizes = [len(each) for each in collected]
    bounds = np.cumsum([0, *sizes])
    given_held = np.repeat([file.held for file in files], sizes).astype(np.bool_)
    exact, near = find_duplicates(collected, given_held, options.near_duplicates, work, progress)
    kept_documents = ~(exact | near)
    if options.min_held and not options.labelled and kept_documents.sum() <= FEW_DOCUMENTS:
        kept_documents &= _learnable(collected, kept_documents, tokens, options)
    sides_of, where = split(collected, given_held, kept_documents, files, options)
    labels = _labels(collected, kept_documents & (sides_of != TEST), sides_of == HELD, where, files, options)
    if labels:
        sides_of = np.where(sides_of == TEST, TEST, labels.in_held.astype(np.int8) * HELD)
    encode_all = (
        LabelledTokens(tokens, options, labels.names).encode_and_cut_all
        if labels
        else partial(tokens.encode_and_cut_all, max_tokens=options.max_tokens)
    )
    result = work / "result"
    shutil.rmtree(result, ignore_errors=True)
    cards: list[SourceCard] = []
    chats = False
    samples = Samples()
    with ExitStack() as stack:
        names = NAMES if options.test_fraction else NAMES[:TEST]
        mixed = {NAMES[TRAIN]: list(dict.fromkeys(file.component for file in files if file.component))}
        sides = {
            name: _Side(_store(stack, result / name, tokens, options, labels, mixed.get(name, ())))
            for name in names
        }
        texts = {
            name: stack.enter_context((result / f"{name}.jsonl").open("w", encoding="utf-8"))
            for name in sides
        }
        for number, (file, entry, shown, collection) in enumerate(
            zip(files, entries, images, collected, strict=True)
        ):
            progress(f"tokenizing {file.name}", 0.7 + 0.3 * number / len(files))
            span = slice(bounds[number], bounds[number + 1])
            kept = used = cut = unknown = 0
            samples.add(collection.samples)
            for some in _batches(enumerate(collection.documents(), int(bounds[number]))):
                taken: list[tuple[int, Collected]] = []
                for place, document in some:
                    if exact[place] or near[place]:
                        samples.of("exact_duplicates" if exact[place] else "near_duplicates", document.raw)
                    elif sides_of[place] == TEST and labels and labels.lacks(document.raw):
                        samples.of(UNKNOWN_LABEL, document.raw)
                        unknown += 1
                    else:
                        taken.append((place, document))
                encoded = encode_all([document.raw for _, document in taken])
                for (place, document), (examples, is_cut) in zip(taken, encoded, strict=True):
                    chats = chats or isinstance(document.raw, Chat)
                    if not examples:
                        samples.of(NO_TARGET, document.raw)
                        continue
                    name = NAMES[sides_of[place]]
                    for example in examples:
                        sides[name].store.add(
                            _with_image(example, document.raw, options.image_side), file.component
                        )
                    size = sum(len(example) for example in examples)
                    ours = {"sha256": document.sha256, "source": document.raw.source, "tokens": size}
                    line = {**_beside(document.raw.record, ours), **document.raw.marks}
                    texts[name].write(json.dumps(line, ensure_ascii=False) + "\n")
                    sides[name].documents += 1
                    kept, used, cut = kept + 1, used + size, cut + is_cut
            duplicates = int(exact[span].sum()), int(near[span].sum())
            cards.append(_source_card(file, entry, collection, duplicates, (kept, cut, used, unknown), shown))
        parts = {name: _part_card(side) for name, side in sides.items()}
        learnt = sides[NAMES[TRAIN]].store
        components = {
            name: ComponentCard(examples=count, tokens=learnt.component_tokens[name])
            for name, count in learnt.components.items()
        }
    card = DataCard(
        inputs_sha256=inputs,
        tokenizer_sha256=tokens.sha256,
        vocab_size=tokens.vocab_size,
        options=options,
        sources=cards,
        notes=[
            *([tokens.stops.note] if chats and tokens.stops.note else []),
            *(labels.notes if labels else []),
        ],
        labels={name: LabelCard(**counts) for name, counts in labels.counts.items()} if labels else {},
        components=components,
        skipped={
            reason: SkippedCard(files=len(names), names=sorted(names)[:MAX_SKIPPED_NAMES])
            for reason, names in sorted(skipped.items())
            if names
        },
        **parts,
    )
    _check_enough(card)
    write_file(result / DROPPED, samples.lines())
    write_file(result / CARD, card.model_dump_json(indent=1).encode())
    sync_tree(result)
    return card


def _batches(documents: Iterable[tuple[int, Collected]]) -> Iterator[list[tuple[int, Collected]]]:
    """As they come, so many that the tokenizer has work for several cores, and not much text at once."""
    batch: list[tuple[int, Collected]] = []
    size = 0
    for place, document in documents:
        batch.append((place, document))
        size += len(document.raw.text) if isinstance(document.raw, Text) else 0
        if len(batch) == BATCH_DOCUMENTS or size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    yield batch


def _beside(record: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """The record with ``ours``; its own keys stay (a translation has a source, a list of words tokens)."""
    return record | {f"document_{key}" if key in record else key: value for key, value in ours.items()}


def _with_image(example: Example, raw: RawExample, side: int | None) -> Example:
    if side is None or not isinstance(raw, Labelled) or raw.image is None:
        return example
    return replace(example, image=np.frombuffer(raw.image, np.uint8).reshape(side, side, 3))


def _learnable(
    collected: list[Collection], kept: NDArray[np.bool_], tokens: Tokens, options: DataOptions
) -> NDArray[np.bool_]:
    """Which of ``kept`` have something to learn within ``max_tokens``, bool (documents,): of few, each one counts."""
    documents = (document for each in collected for document in each.documents())
    return np.array(
        [
            bool(is_kept) and bool(tokens.encode(document.raw, options.max_tokens))
            for document, is_kept in zip(documents, kept, strict=True)
        ],
        dtype=np.bool_,
    )


def _labels(
    collected: list[Collection],
    kept: NDArray[np.bool_],
    in_held: NDArray[np.bool_],
    place: NDArray[np.float64],
    files: list[Source],
    options: DataOptions,
) -> Labels | None:
    """The labels of what is kept; None of data without. Raises as ``find_labels``."""
    if not options.labelled or not kept.any():
        return None
    documents = (document.raw for each in collected for document in each.documents())
    labelled = (raw for raw in documents if isinstance(raw, Labelled))
    return find_labels(labelled, kept, in_held, place, given_held=any(file.held for file in files))


def _store(
    stack: ExitStack,
    directory: Path,
    tokens: Tokens,
    options: DataOptions,
    labels: Labels | None,
    components: Sequence[str],
) -> StoreWriter:
    directory.mkdir(parents=True)
    kind = options.labelled
    store = StoreWriter(
        directory,
        tokenizer_sha256=tokens.sha256,
        vocab_size=tokens.vocab_size,
        kind=None if kind == "seq2seq" else kind,
        labels=labels.names if labels and kind in NAMED else None,
        image_size=options.image_side,
        components=components,
    )
    stack.callback(store.close)
    return store


def _source_card(
    file: Source,
    entry: FileEntry,
    collection: Collection,
    duplicates: tuple[int, int],
    written: tuple[int, int, int, int],
    images: str | None,
) -> SourceCard:
    kept, cut, tokens, unknown = written
    dropped = dict(collection.dropped)
    if unknown:
        dropped[UNKNOWN_LABEL] = unknown
    if beyond := len(collection) - sum(duplicates) - kept - unknown:
        dropped[NO_TARGET] = beyond
    return SourceCard(
        name=file.name,
        sha256=entry.sha256,
        size_bytes=entry.size_bytes,
        images_sha256=images,
        forms=collection.forms,
        read=collection.read,
        changed={name: Change(**change) for name, change in collection.changed.items()},
        masked=collection.masked,
        languages=collection.languages,
        marked=collection.marked,
        ignored=collection.ignored,
        dropped=dropped,
        exact_duplicates=duplicates[0],
        near_duplicates=duplicates[1],
        kept=kept,
        cut=cut,
        tokens=tokens,
    )


def _part_card(side: _Side) -> PartCard:
    card = side.store.finish()
    return PartCard(
        documents=side.documents,
        examples=card.documents,
        tokens=card.tokens,
        targets=card.targets,
        store_sha256=card.sha256,
    )


def _check_enough(card: DataCard) -> None:
    left, needed = card.train.documents, card.options.min_examples
    if not card.read and (others := card.skipped.get("not examples")):
        raise InvalidInput(
            f"no file holds examples in a form that is known, such as {', '.join(others.names[:3])}. {RIGHT}",
            param="training_file",
        )
    if left < needed:
        raise InvalidInput(
            f"{left} of {card.read} examples are left to train on ({_listed_dropped(card)}; "
            f"{card.held.documents} held out). At least {needed} are needed",
            param="training_file",
        )
    for name, component in card.components.items():
        if not component.examples:
            raise InvalidInput(
                f"data.mixture: nothing of {name!r} is left to train on (of all files: "
                f"{_listed_dropped(card)}; {card.held.documents} held out)",
                param="data.mixture",
            )
    if card.held.documents < card.options.min_held:
        raise InvalidInput(_why_few_held(card), param="training_file")


def _why_few_held(card: DataCard) -> str:
    least = card.options.min_held
    return (
        f"{card.kept} of {card.read} documents are left ({_listed_dropped(card)}), of which "
        f"{card.held.documents} are held out to measure on; {least} are needed there and as many to learn from: give "
        "more documents, a larger held_fraction, or a validation file"
    )


def _listed_dropped(card: DataCard) -> str:
    listed = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in card.dropped.items())
    return listed or "none dropped"
