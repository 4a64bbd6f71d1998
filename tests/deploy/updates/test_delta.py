"""A file as a difference from a former one: the same bytes come out, or one clear error."""

from __future__ import annotations

import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.updates.delta import SEGMENT_BYTES, apply_delta, write_delta
from deploy.updates.release import Tensor
from everlearn.errors import Corrupt

Layout = list[tuple[str, bytes, int]]  # a tensor's name, its bytes, and how many follow before the next
layouts = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.binary(min_size=1, max_size=200), st.integers(0, 9)),
    max_size=6,
    unique_by=lambda one: one[0],
)


def written(file: Path, layout: Layout) -> tuple[Tensor, ...]:
    spans, content = [], b""
    for name, values, gap in layout:
        spans.append(Tensor(name=name, offset=len(content), bytes=len(values)))
        content += values + bytes(gap)
    file.write_bytes(content)
    return tuple(spans)


def made(folder: Path, target: Path, base: Path | None, tensors=(), base_tensors=()) -> Path:
    delta = folder / "delta"
    with delta.open("wb") as out:
        write_delta(out, target, base, tensors, base_tensors)
    return delta


def applied(delta: Path, base: Path | None, size: int) -> bytes:
    out = BytesIO()
    apply_delta(delta, base, out, size)
    return out.getvalue()


@settings(max_examples=60, deadline=None)
@given(old=layouts, new=layouts)
def test_any_layout_of_tensors_comes_out_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, old: Layout, new: Layout
) -> None:
    folder = tmp_path_factory.mktemp("delta")
    base, target = folder / "old", folder / "new"
    base_tensors, tensors = written(base, old), written(target, new)
    for former, of in ((base, base_tensors), (None, ())):
        delta = made(folder, target, former, tensors, of)
        assert applied(delta, former, target.stat().st_size) == target.read_bytes()


def test_a_lesson_that_moves_a_hundredth_of_the_codes_takes_a_tenth_of_the_bytes_both_ways(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, 3 * SEGMENT_BYTES + 17, np.uint8)
    moved = codes ^ (rng.random(len(codes)) < 0.01).astype(np.uint8)
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(codes.tobytes())
    new.write_bytes(moved.tobytes())
    tensors = (Tensor(name="codes", offset=0, bytes=len(codes)),)
    delta = made(tmp_path, new, old, tensors, tensors)
    assert delta.stat().st_size < 0.1 * len(codes)
    assert applied(delta, old, len(codes)) == moved.tobytes()
    assert applied(delta, new, len(codes)) == codes.tobytes()

    class Nowhere(BytesIO):
        def write(self, piece) -> int:
            return len(piece)

    tracemalloc.start()
    apply_delta(delta, old, Nowhere(), len(codes))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * SEGMENT_BYTES, "more than a segment and what becomes of it is in memory"


@settings(max_examples=150, deadline=None)
@given(
    at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 400), size=st.integers(0, 5000)
)
def test_a_changed_delta_gives_one_clear_error_or_bytes_that_their_sha256_tells_apart(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, cut: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    base, target = folder / "old", folder / "new"
    tensors = written(base, [("a", bytes(range(256)) * 8, 3)])
    written(target, [("a", bytes(range(255, -1, -1)) * 8, 5)])
    delta = made(folder, target, base, tensors, tensors)
    raw = bytearray(delta.read_bytes())
    raw[at % len(raw)] = value
    delta.write_bytes(raw[: max(0, len(raw) - cut)])
    for promised in (target.stat().st_size, size):
        try:
            assert len(applied(delta, base, promised)) == promised
        except Corrupt as error:
            assert str(delta) in error.message or str(base) in error.message


def test_a_frame_that_claims_a_gigabyte_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    import json
    import struct

    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    header = zstandard.ZstdCompressor().compress(
        json.dumps({"bytes": 1000, "segments": [[1000, -1, len(bomb)]]}).encode()
    )
    delta = tmp_path / "delta"
    delta.write_bytes(b"EVDELTA1" + struct.pack("<I", len(header)) + header + bomb)
    tracemalloc.start()
    with pytest.raises(Corrupt, match="frame of another size"):
        applied(delta, None, 1000)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
