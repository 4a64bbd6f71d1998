"""docs/architecture.svg, from the sources: ``python -m tests.setup.architecture_picture`` redraws it.

Each room is a box with its folders and their lines of Python. An arrow points from a room to one that it imports, with
the number of modules imported, counted once per importing file; imports inside functions count as well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tests.setup.test_layers import REPOSITORY, graph

PICTURE = REPOSITORY / "docs" / "architecture.svg"
COMMAND = "python -m tests.setup.architecture_picture"

KERNEL = "everlearn"
ROLES = {
    "train": ("data, the training loop,", "objectives, evaluation"),
    "compress": ("quantize, prune, distill,", "export, measure"),
    "continual": ("fine-tuning jobs: queue,", "replay, gate, promotion"),
    "serve": ("gateway, engines,", "supervisor, batches"),
    "deploy": ("dashboards", "and alerts"),
    KERNEL: ("the kernel: what every room uses. It imports none of them.",),
}
"""The rooms, as they stand from left to right: each imports what is left of it, and the kernel."""
LEGEND = "1.0k: lines of Python · arrows: modules imported"
ROW = [room for room in ROLES if room != KERNEL]

# Pixels.
MARGIN, GAP, WIDE, NARROW = 28, 52, 168, 116
TITLE, LINE, PAD = 50, 22, 14
LEVEL = 30
"""Between two arrows that pass over a room."""
KERNEL_GAP, KERNEL_COLUMN = 74, 152

STYLE = """
  svg { --paper: #f6f8fa; --card: #ffffff; --edge: #d1d9e0; --text: #1f2328; --muted: #59636e;
        --train: #0969da; --compress: #8250df; --continual: #1a7f37; --serve: #bc4c00; --deploy: #9a6700;
        --everlearn: #424a53; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #151b23; --card: #0d1117; --edge: #3d444d; --text: #f0f6fc; --muted: #9198a1;
          --train: #4493f8; --compress: #ab7df8; --continual: #3fb950; --serve: #f0883e; --deploy: #d29922;
          --everlearn: #9198a1; }
  }
  text { font: 13px -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: var(--text); }
  .name { font: 600 16px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
  .folder { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
  .muted { fill: var(--muted); font-size: 12.5px; }
  .end { text-anchor: end; font-variant-numeric: tabular-nums; }
  .count { text-anchor: middle; font-weight: 600; font-variant-numeric: tabular-nums; }
  .paper { fill: var(--paper); }
  .card { fill: var(--card); stroke: var(--edge); }
  .pill { fill: var(--paper); }
  .arrow { fill: none; stroke-linecap: butt; }
"""


@dataclass(frozen=True)
class Room:
    """``folders``: lines of Python by folder; None where it holds other files. ``lines``: all of the room's."""

    name: str
    folders: Mapping[str, int | None]
    lines: int


def rooms() -> dict[str, Room]:
    """Every room with what is in it now."""
    return {name: _room(name) for name in ROLES}


def _room(name: str) -> Room:
    folders: dict[str, int | None] = {}
    for folder in sorted(path for path in (REPOSITORY / name).iterdir() if path.is_dir()):
        files = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        if files:
            folders[folder.name] = _lines(folder.rglob("*.py")) or None
    return Room(name, folders, _lines((REPOSITORY / name).rglob("*.py")))


def _lines(files: Iterable[Path]) -> int:
    return sum(len(file.read_text().splitlines()) for file in files)


def arrows() -> Counter[tuple[str, str]]:
    """From one room to another: how many modules of it the files of the first import."""
    rooms = (
        (importer.partition(".")[0], imported.partition(".")[0])
        for importer, all_imported in graph().items()
        for imported in all_imported
    )
    return Counter(pair for pair in rooms if pair[0] != pair[1])


def picture() -> str:
    """The SVG. Raises ValueError where a room imports one to its right: the picture has no such arrow."""
    all_rooms, all_arrows = rooms(), arrows()
    order = [*reversed(ROW), KERNEL]
    if wrong := [pair for pair in all_arrows if order.index(pair[0]) > order.index(pair[1])]:
        raise ValueError(f"these arrows would point to the right: {wrong}")
    over = sorted((p for p in all_arrows if p[1] != KERNEL and _apart(p) > 1), key=_apart)
    top = MARGIN + LEVEL * len(over) + 12
    height = TITLE + 2 * 17 + PAD + LINE * max(len(all_rooms[name].folders) for name in ROW) + PAD
    left = {name: MARGIN + at * (WIDE + GAP) for at, name in enumerate(ROW)}
    width = max(left[name] + _width(name) for name in ROW) + MARGIN
    kernel_top = top + height + KERNEL_GAP
    rows = math.ceil(len(all_rooms[KERNEL].folders) / ((width - 2 * MARGIN) // KERNEL_COLUMN))
    kernel_height = TITLE + 17 + LINE * rows + 2 * PAD
    total = kernel_top + kernel_height + MARGIN
    drawn = [
        _straight(pair, n, left, top, height, kernel_top)
        for pair, n in all_arrows.items()
        if pair not in over
    ]
    drawn += [_over(pair, all_arrows[pair], left, top, level) for level, pair in enumerate(over)]
    cards = [_card(all_rooms[name], left[name], top, _width(name), height) for name in ROW]
    kernel = _kernel(all_rooms[KERNEL], kernel_top, width - 2 * MARGIN, kernel_height)
    legend = f'<text class="muted end" x="{width - MARGIN}" y="{MARGIN + 16}">{escape(LEGEND)}</text>'
    body = "\n".join([legend, *sorted(drawn), *cards, kernel])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}" '
        'role="img" aria-label="The rooms and what they import">\n'
        f"<!-- Drawn by {COMMAND} -->\n<style>{STYLE}</style>\n<defs>\n{_heads()}\n</defs>\n"
        f'<rect class="paper" width="{width}" height="{total}" rx="12"/>\n{body}\n</svg>\n'
    )


def _apart(pair: tuple[str, str]) -> int:
    return ROW.index(pair[0]) - ROW.index(pair[1])


def _width(room: str) -> int:
    return NARROW if room == ROW[-1] else WIDE


def _heads() -> str:
    return "\n".join(
        f'<marker id="head-{room}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0.5 10 5 0 9.5Z" fill="var(--{room})"/></marker>'
        for room in ROLES
    )


def _straight(
    pair: tuple[str, str], count: int, left: Mapping[str, int], top: int, height: int, kernel_top: int
) -> str:
    """Down to the kernel, or to the next room on the left."""
    if pair[1] == KERNEL:
        x = left[pair[0]] + _width(pair[0]) / 2
        return _arrow(
            pair, count, f"M{x:g} {top + height} V{kernel_top - 2}", x, top + height + KERNEL_GAP / 2
        )
    y, start, end = top + 32, left[pair[0]], left[pair[1]] + WIDE + 2
    return _arrow(pair, count, f"M{start} {y} H{end}", (start + end) / 2 + 2, y)


def _over(pair: tuple[str, str], count: int, left: Mapping[str, int], top: int, level: int) -> str:
    """Up, over the rooms between, and down; further out the further it goes."""
    y, r = top - LEVEL * (level + 1), 12
    start, end = left[pair[0]] + _width(pair[0]) / 2 - 16 * level, left[pair[1]] + WIDE / 2 + 16 * level
    path = f"M{start:g} {top} V{y + r} q0 {-r} {-r} {-r} H{end + r:g} q{-r} 0 {-r} {r} V{top - 2}"
    return _arrow(pair, count, path, (start + end) / 2, y)


def _arrow(pair: tuple[str, str], count: int, path: str, x: float, y: float) -> str:
    label = str(count)
    half = 4.5 * len(label) + 5
    stroke = 1.25 + 0.3 * math.log2(count)
    return (
        f'<g data-from="{pair[0]}" data-to="{pair[1]}" data-imports="{count}">'
        f'<path class="arrow" d="{path}" stroke="var(--{pair[0]})" stroke-width="{stroke:.2f}" '
        f'marker-end="url(#head-{pair[0]})"/>'
        f'<rect class="pill" x="{x - half:g}" y="{y - 10:g}" width="{2 * half:g}" height="20" rx="6"/>'
        f'<text class="count" x="{x:g}" y="{y + 4.5:g}">{label}</text></g>'
    )


def _card(room: Room, x: int, y: int, width: int, height: int) -> str:
    right = x + width - PAD
    parts = [_box(room, x, y, width, height)]
    for line, text in enumerate(ROLES[room.name]):
        parts.append(
            f'<text class="muted" x="{x + PAD}" y="{y + TITLE + 17 * line + 6}">{escape(text)}</text>'
        )
    first = y + TITLE + 2 * 17 + PAD + 12
    for at, (folder, lines) in enumerate(room.folders.items()):
        parts.append(_folder(room.name, folder, lines, x + PAD, right, first + LINE * at))
    return "\n".join([*parts, "</g>"])


def _kernel(room: Room, y: int, width: int, height: int) -> str:
    parts = [_box(room, MARGIN, y, width, height)]
    parts.append(
        f'<text class="muted" x="{MARGIN + PAD}" y="{y + TITLE + 6}">{escape(ROLES[KERNEL][0])}</text>'
    )
    columns = width // KERNEL_COLUMN
    step = (width - 2 * PAD) / min(columns, len(room.folders))
    for at, (folder, lines) in enumerate(room.folders.items()):
        x = MARGIN + PAD + step * (at % columns)
        row = y + TITLE + 17 + PAD + 8 + LINE * (at // columns)
        parts.append(_folder(room.name, folder, lines, x, x + step - 46, row))
    return "\n".join([*parts, "</g>"])


def _box(room: Room, x: int, y: int, width: int, height: int) -> str:
    return (
        f'<g data-room="{room.name}" data-lines="{room.lines}">'
        f'<rect class="card" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'
        f'<path d="M{x} {y + 8} a8 8 0 0 1 8 -8 h{width - 16} a8 8 0 0 1 8 8 q-1 -3 -6 -3 h{12 - width} q-5 0 -6 3Z" '
        f'fill="var(--{room.name})"/>'
        f'<text class="name" x="{x + PAD}" y="{y + 32}">{room.name}/</text>'
        f'<text class="muted end" x="{x + width - PAD}" y="{y + 32}">{_short(room.lines)}</text>'
    )


def _folder(room: str, folder: str, lines: int | None, x: float, right: float, y: float) -> str:
    count = "" if lines is None else f'<text class="muted end" x="{right:g}" y="{y:g}">{_short(lines)}</text>'
    return f'<text class="folder" data-folder="{room}/{folder}" x="{x:g}" y="{y:g}">{folder}/</text>{count}'


def _short(lines: int) -> str:
    """In thousands, so that the picture stays right for longer than the number does."""
    return f"{lines / 1000:.1f}k" if lines >= 50 else ""


if __name__ == "__main__":
    PICTURE.write_text(picture())
    print(PICTURE.relative_to(REPOSITORY))
