"""Tokenized examples on disk: flat files that many processes map into memory and share.

``tokens.bin`` holds every example's ids end to end (uint16 where the vocabulary allows, else uint32),
``mask.bin`` one byte per token (1 = target), ``offsets.bin`` int64 (examples + 1,), and ``card.json`` the counts
and the sha256 of each. A store appears whole under its name or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from everlearn.bundles.bundle import Digest, FileEntry, file_entry
from everlearn.bundles.durable import move_directory, sync_tree, write_file
from everlearn.bundles.staging import staging_directory, sweep_staging
from everlearn.errors import Conflict, Corrupt, NotFound

CARD = "card.json"
FILES = ("tokens.bin", "mask.bin", "offsets.bin")
SMALL_VOCABULARY = 2**16


@dataclass(frozen=True)
class Example:
    """What a model sees at once, and which of its tokens count.

    ids: int32 (n,). mask: bool (n,), true where the token is a target, that is where loss counts. Nothing comes
    before the first token, so it is never a target.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


class StoreCard(BaseModel):
    """card.json of a store. ``tokens`` counts all of them, ``targets`` those where loss counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    targets: int = Field(ge=0)
    dtype: Literal["uint16", "uint32"]
    vocab_size: int = Field(gt=0)
    tokenizer_sha256: Digest
    files: dict[str, FileEntry]

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
    ) -> None:
        self.tokens = tokens
        self.mask = mask
        self.offsets = offsets
        self.card = card

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        position = range(len(self))[index]
        start, stop = self.offsets[position], self.offsets[position + 1]
        return Example(np.array(self.tokens[start:stop], dtype=np.int32), np.array(self.mask[start:stop]))


class StoreWriter:
    """Takes examples one by one; memory does not grow with the tokens."""

    def __init__(self, staging: Path, *, tokenizer_sha256: str, vocab_size: int) -> None:
        self.staging = staging
        self.tokenizer_sha256 = tokenizer_sha256
        self.vocab_size = vocab_size
        self.dtype: Literal["uint16", "uint32"] = "uint16" if vocab_size <= SMALL_VOCABULARY else "uint32"
        self.documents = self.tokens = self.targets = 0
        self._tokens: BinaryIO = (staging / "tokens.bin").open("wb", buffering=2**20)
        self._mask: BinaryIO = (staging / "mask.bin").open("wb", buffering=2**20)
        self._offsets: BinaryIO = (staging / "offsets.bin").open("wb", buffering=2**20)
        self._offsets.write(np.int64(0).tobytes())

    def add(self, example: Example) -> None:
        """Raises ValueError for an example that no tokenizer of this vocabulary makes."""
        ids, mask = np.asarray(example.ids), np.array(example.mask, dtype=np.bool_)
        if ids.ndim != 1 or ids.shape != mask.shape or not len(ids):
            raise ValueError(f"ids {ids.shape} and mask {mask.shape} must both be (n,), with n > 0")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(
                f"ids reach from {ids.min()} to {ids.max()}; the vocabulary has {self.vocab_size}"
            )
        mask[0] = False
        self._tokens.write(ids.astype(self.dtype).tobytes())
        self._mask.write(mask.tobytes())
        self.documents += 1
        self.tokens += len(ids)
        self.targets += int(mask.sum())
        self._offsets.write(np.int64(self.tokens).tobytes())

    def close(self) -> None:
        for file in (self._tokens, self._mask, self._offsets):
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
            files={name: file_entry(self.staging / name) for name in FILES},
        )
        write_file(self.staging / CARD, card.model_dump_json(indent=1).encode())
        return card


def write_store(
    path: Path, examples: Iterable[Example], *, tokenizer_sha256: str, vocab_size: int
) -> StoreCard:
    """Writes a store that is either wholly at ``path`` afterwards or not there, whenever the machine stops.

    Writing the same examples again changes nothing. Raises Conflict where ``path`` holds something else.
    """
    with _staged(path) as staging:
        writer = StoreWriter(staging, tokenizer_sha256=tokenizer_sha256, vocab_size=vocab_size)
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
    for name in FILES:
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
    return TokenStore(tokens, mask, offsets, card)


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
