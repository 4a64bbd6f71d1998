"""Tokenized examples on disk: flat files that many processes map into memory and share.

``tokens.bin`` holds every example's ids end to end (uint16 where the vocabulary allows, else uint32),
``mask.bin`` one byte per token (1 = target), ``offsets.bin`` int64 (examples + 1,), and ``card.json`` the counts
and the sha256 of each. Labelled data has ``labels.bin`` and ``segments.bin`` beside them, int32 per token each; pairs of images and texts have ``images.bin`` too. A store appears whole under its name or not at all.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer

from everlearn.bundles.bundle import Digest, FileEntry, file_entry
from everlearn.bundles.durable import move_directory, sync_tree, write_file
from everlearn.bundles.staging import staging_directory, sweep_staging
from everlearn.errors import Conflict, Corrupt, NotFound
from train.data.labelled.example import LabelledKind

CARD = "card.json"
FILES = ("tokens.bin", "mask.bin", "offsets.bin")
COLUMNS = ("labels.bin", "segments.bin")
"""Of labelled data alone."""
IMAGES = "images.bin"
"""Of pairs of images and texts alone: uint8 (examples, size, size, 3)."""
SMALL_VOCABULARY = 2**16


@dataclass(frozen=True)
class Example:
    """What a model sees at once, and which of its tokens count.

    ids: int32 (n,). mask: bool (n,), true where the token is a target, that is where loss counts. Nothing comes
    before the first token, so it is never a target; but with ``labels`` it may be one.

    labels: int32 (n,), what is said of a token, and -100 of those that are no target; see ``train.data.labelled.encode``.
    segments: int32 (n,), which of the example's texts a token is of. Both or none.
    image: uint8 (size, size, 3), of a pair of image and text.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    labels: NDArray[np.int32] | None = None
    segments: NDArray[np.int32] | None = None
    image: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.ids)


class StoreCard(BaseModel):
    """card.json of a store. ``tokens`` counts all of them, ``targets`` those where loss counts.

    ``kind``: of labelled data, None of other; ``labels``: their names, by number. ``image_size``: pixels of a side.
    ``components``: of a mixture, how many examples each has, one after the other in this order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    targets: int = Field(ge=0)
    dtype: Literal["uint16", "uint32"]
    vocab_size: int = Field(gt=0)
    tokenizer_sha256: Digest
    files: dict[str, FileEntry]
    kind: LabelledKind | None = None
    labels: tuple[str, ...] | None = None
    image_size: int | None = Field(default=None, ge=1)
    components: dict[str, Annotated[int, Field(ge=0)]] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The files that it has."""
        return (*FILES, *(COLUMNS if self.kind else ()), *((IMAGES,) if self.image_size else ()))

    @model_serializer(mode="wrap")
    def _as_before(self, handler: Any) -> dict[str, Any]:
        """What other data does not have is not said of it, so that its card is that of earlier versions."""
        return {key: value for key, value in handler(self).items() if value is not None}

    @property
    def sha256(self) -> str:
        """Names the content: equal for stores whose every byte is equal."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class TokenStore(Sequence[Example]):
    """Examples by index; the arrays are mapped, not read. ``tokens`` is (tokens,), ``offsets`` (examples + 1,)."""

    def __init__(
        self,
        tokens: NDArray[np.unsignedinteger],
        mask: NDArray[np.bool_],
        offsets: NDArray[np.int64],
        card: StoreCard,
        labels: NDArray[np.int32] | None = None,
        segments: NDArray[np.int32] | None = None,
        images: NDArray[np.uint8] | None = None,
    ) -> None:
        self.images = images
        self.tokens = tokens
        self.labels = labels
        self.segments = segments
        self.mask = mask
        self.offsets = offsets
        self.card = card

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        position = range(len(self))[index]
        start, stop = self.offsets[position], self.offsets[position + 1]
        columns = (
            None if column is None else np.array(column[start:stop])
            for column in (self.labels, self.segments)
        )
        ids = np.array(self.tokens[start:stop], dtype=np.int32)
        image = None if self.images is None else np.array(self.images[position])
        return Example(ids, np.array(self.mask[start:stop]), *columns, image)


class StoreWriter:
    """Takes examples one by one; memory does not grow with the tokens. With a ``kind``, they have both columns."""

    def __init__(
        self,
        staging: Path,
        *,
        tokenizer_sha256: str,
        vocab_size: int,
        kind: LabelledKind | None = None,
        labels: tuple[str, ...] | None = None,
        image_size: int | None = None,
        components: Sequence[str] = (),
    ) -> None:
        self.image_size = image_size
        self.components = dict.fromkeys(components, 0)
        self.component_tokens = dict.fromkeys(components, 0)
        self._images: BinaryIO | None = (staging / IMAGES).open("wb", buffering=2**20) if image_size else None
        self.kind: LabelledKind | None = kind
        self.labels = labels
        self._columns: list[BinaryIO] = [
            (staging / name).open("wb", buffering=2**20) for name in (COLUMNS if kind else ())
        ]
        self.staging = staging
        self.tokenizer_sha256 = tokenizer_sha256
        self.vocab_size = vocab_size
        self.dtype: Literal["uint16", "uint32"] = "uint16" if vocab_size <= SMALL_VOCABULARY else "uint32"
        self.documents = self.tokens = self.targets = 0
        self._tokens: BinaryIO = (staging / "tokens.bin").open("wb", buffering=2**20)
        self._mask: BinaryIO = (staging / "mask.bin").open("wb", buffering=2**20)
        self._offsets: BinaryIO = (staging / "offsets.bin").open("wb", buffering=2**20)
        self._offsets.write(np.int64(0).tobytes())

    def add(self, example: Example, component: str | None = None) -> None:
        """``component``: of a mixture; its examples come one after the other, the components in their order. Raises
        ValueError for an example that no tokenizer of this vocabulary makes."""
        ids, mask = np.asarray(example.ids), np.array(example.mask, dtype=np.bool_)
        if ids.ndim != 1 or ids.shape != mask.shape or not len(ids):
            raise ValueError(f"ids {ids.shape} and mask {mask.shape} must both be (n,), with n > 0")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(
                f"ids reach from {ids.min()} to {ids.max()}; the vocabulary has {self.vocab_size}"
            )
        if self._columns:
            for file, column in zip(self._columns, (example.labels, example.segments), strict=True):
                if column is None or column.shape != ids.shape:
                    raise ValueError("an example of labelled data has labels and segments of its length")
                file.write(column.astype(np.int32).tobytes())
        else:
            mask[0] = False
        if self._images:
            if example.image is None or example.image.shape != (self.image_size, self.image_size, 3):
                raise ValueError(f"a pair has an image of {self.image_size} pixels a side")
            self._images.write(example.image.astype(np.uint8).tobytes())
        self._tokens.write(ids.astype(self.dtype).tobytes())
        self._mask.write(mask.tobytes())
        if component in self.components:
            self.components[component] += 1
            self.component_tokens[component] += len(ids)
        self.documents += 1
        self.tokens += len(ids)
        self.targets += int(mask.sum())
        self._offsets.write(np.int64(self.tokens).tobytes())

    def close(self) -> None:
        for file in (self._tokens, self._mask, self._offsets, self._images, *self._columns):
            if file:
                file.close()

    def finish(self) -> StoreCard:
        """Closes the files and writes the card beside them."""
        self.close()
        card = StoreCard(
            documents=self.documents,
            tokens=self.tokens,
            targets=self.targets,
            dtype=self.dtype,
            vocab_size=self.vocab_size,
            tokenizer_sha256=self.tokenizer_sha256,
            files={},
            kind=self.kind,
            labels=self.labels,
            image_size=self.image_size,
            components=self.components or None,
        )
        card = card.model_copy(
            update={"files": {name: file_entry(self.staging / name) for name in card.names}}
        )
        write_file(self.staging / CARD, card.model_dump_json(indent=1).encode())
        return card


def write_store(
    path: Path,
    examples: Iterable[Example],
    *,
    tokenizer_sha256: str,
    vocab_size: int,
    kind: LabelledKind | None = None,
    labels: tuple[str, ...] | None = None,
) -> StoreCard:
    """Writes a store that is either wholly at ``path`` afterwards or not there, whenever the machine stops.

    Writing the same examples again changes nothing. Raises Conflict where ``path`` holds something else.
    """
    with _staged(path) as staging:
        writer = StoreWriter(
            staging, tokenizer_sha256=tokenizer_sha256, vocab_size=vocab_size, kind=kind, labels=labels
        )
        try:
            for example in examples:
                writer.add(example)
            card = writer.finish()
        finally:
            writer.close()
        if not path.exists():
            sync_tree(staging)
            move_directory(staging, path)
            return card
    if _read_card(path) != card:
        raise Conflict(f"{path} already holds other examples: remove it or choose another folder")
    return card


def open_store(path: Path, verify: bool = False) -> TokenStore:
    """Maps a store's files; ``verify`` reads and hashes every byte.

    Raises NotFound where there is no store, and Corrupt naming the file that is not what was written.
    """
    card = _read_card(path)
    for name in card.names:
        file, entry = path / name, card.files.get(name)
        if entry is None or not file.is_file() or file.stat().st_size != entry.size_bytes:
            raise Corrupt(f"{file} is not the file that was written: its size differs", param=name)
        if verify and file_entry(file) != entry:
            raise Corrupt(f"{file} is not the file that was written: its bytes changed", param=name)
    tokens, mask = _mapped(path / "tokens.bin", card.dtype), _mapped(path / "mask.bin", "bool")
    offsets = _mapped(path / "offsets.bin", "int64")
    whole = len(tokens) == len(mask) == card.tokens and len(offsets) == card.documents + 1
    if not whole or offsets[0] != 0 or offsets[-1] != card.tokens:
        raise Corrupt(f"{path / CARD} does not fit the files beside it", param=CARD)
    if card.kind is None:
        return TokenStore(tokens, mask, offsets, card)
    labels, segments = (_mapped(path / name, "int32") for name in COLUMNS)
    if not len(labels) == len(segments) == card.tokens:
        raise Corrupt(f"{path / CARD} does not fit the files beside it", param=CARD)
    if card.image_size is None:
        return TokenStore(tokens, mask, offsets, card, labels, segments)
    images, shape = _mapped(path / IMAGES, "uint8"), (card.documents, card.image_size, card.image_size, 3)
    if images.size != math.prod(shape):
        raise Corrupt(f"{path / CARD} does not fit the files beside it", param=CARD)
    return TokenStore(tokens, mask, offsets, card, labels, segments, images.reshape(shape))


@contextmanager
def _staged(path: Path) -> Generator[Path]:
    """A folder on the same disk as ``path``, cleared when this process, or a killed one, leaves it behind."""
    place = path.parent / ".staging"
    place.mkdir(parents=True, exist_ok=True)
    sweep_staging(place)
    with staging_directory(place) as staging:
        yield staging


def _read_card(path: Path) -> StoreCard:
    try:
        return StoreCard.model_validate_json((path / CARD).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{path} is not a store of tokens: it has no {CARD}") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise Corrupt(f"{path / CARD}: {fault['msg']}", param=CARD) from None


def _mapped(file: Path, dtype: str) -> NDArray:
    """An empty file cannot be mapped."""
    if file.stat().st_size == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(file, dtype=dtype, mode="r")
