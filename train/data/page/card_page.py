"""One HTML page about prepared data: what was read, what was left out and examples of it, lengths and sources.

Texts are a stranger's: everything is escaped, and the page runs no script and loads nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from everlearn.errors import Corrupt
from train.data.card import DataCard
from train.data.prepare import CARD, DROPPED, read_card
from train.data.split import NAMES

MAX_SOURCES = 200
EXAMPLES = 3
EXCERPT_CHARS = 600

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .2rem .6rem .2rem 0; vertical-align: top; overflow-wrap: anywhere }
td.n { text-align: right; white-space: nowrap; width: 7rem; font-variant-numeric: tabular-nums }
td.bar { width: 45% } td.bar div { background: #4a78b5; height: .8rem; min-width: 1px }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: .5rem; margin: .3rem 0; max-height: 12rem; overflow: auto }
small { color: #666 } .warning { color: #a33 }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd } pre { background: #2a2a2a } small { color: #999 } .warning { color: #e88 } }
"""


def card_page(folder: Path) -> str:
    """The page of the data that ``prepare`` wrote into ``folder``. Raises as ``read_card``, and Corrupt for broken lines."""
    card = read_card(folder)
    parts = [name for name in NAMES if (folder / f"{name}.jsonl").is_file()]
    lengths: Counter[int] = Counter()
    excerpts: list[tuple[str, str]] = []
    for name in parts:
        for number, line in enumerate(_records(folder / f"{name}.jsonl")):
            lengths[max(0, int(line.get("tokens", 0)) - 1).bit_length()] += 1
            if name == "train" and number < EXAMPLES:
                excerpts.append((str(line.get("source", "")), _text(line)))
    body = [
        f"<h1>{escape(folder.resolve().name)}</h1>",
        _summary(card, parts),
        _section("Length in tokens", _bars(_ranges(lengths))),
        _section("Tokens by component", _bars((name, each.tokens) for name, each in card.components.items())),
        _section("Languages", _bars(card.languages.items())),
        _section("How it was written", _bars(card.forms.items())),
        _section("Left out", _bars(card.dropped.items())),
        _section("Changed", _bars((name, change.examples) for name, change in card.changed.items())),
        _section("Personal data masked", _bars(card.masked.items())),
        _section("Kept and marked", _bars(card.marked.items())),
        _section("Sources", _sources(card)),
        _section("Kept, for example", "".join(_excerpt(*each) for each in excerpts)),
        *_dropped(folder / DROPPED),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(folder.resolve().name)}</title><style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _summary(card: DataCard, parts: Iterable[str]) -> str:
    rows = [("read", card.read, ""), ("kept", card.kept, "")]
    for name in parts:
        part = getattr(card, name)
        rows.append(
            (f"in {name}", part.documents, f"{part.tokens:,} tokens, {part.targets:,} of them learnt")
        )
    cells = "".join(
        f"<tr><td>{escape(label)}</td><td class=n>{count:,}</td><td>{escape(more)}</td></tr>"
        for label, count, more in rows
    )
    told = "".join(f"<p class=warning>{escape(each)}</p>" for each in (*card.warnings(), *card.notes))
    return f"<table>{cells}</table>{told}"


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}" if content else ""


def _bars(counts: Iterable[tuple[str, int]]) -> str:
    listed = [(name, count) for name, count in counts if count]
    most = max((count for _, count in listed), default=0)
    rows = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td class=n>{count:,}</td>"
        f'<td class=bar><div style="width:{100 * count / most:.1f}%"></div></td></tr>'
        for name, count in listed
    )
    return f"<table>{rows}</table>" if rows else ""


def _ranges(lengths: Counter[int]) -> Iterator[tuple[str, int]]:
    """Powers of two: bucket b holds lengths above 2^(b-1), up to 2^b."""
    for bits in range(min(lengths, default=0), max(lengths, default=-1) + 1):
        yield f"{2 ** (bits - 1) + 1 if bits else 1} to {2**bits}", lengths[bits]


def _sources(card: DataCard) -> str:
    rows = "".join(
        f"<tr><td>{escape(each.name)}</td><td class=n>{each.read:,}</td><td class=n>{each.kept:,}</td>"
        f"<td class=n>{each.tokens:,}</td></tr>"
        for each in card.sources[:MAX_SOURCES]
    )
    more = len(card.sources) - MAX_SOURCES
    rest = f"<p>and {more:,} more</p>" if more > 0 else ""
    skipped = "".join(
        f"<p>Skipped, {escape(reason)} ({each.files:,}): {escape(', '.join(each.names))}</p>"
        for reason, each in card.skipped.items()
    )
    return (
        "<table><tr><th>file</th><th>read</th><th>kept</th><th>tokens</th></tr>"
        + rows
        + f"</table>{rest}{skipped}"
    )


def _dropped(file: Path) -> Iterator[str]:
    if not file.is_file():
        return
    by_rule: dict[str, list[str]] = {}
    for each in _records(file):
        by_rule.setdefault(str(each.get("rule", "")), []).append(
            _excerpt(str(each.get("source", "")), str(each.get("text", "")))
        )
    for rule, examples in sorted(by_rule.items()):
        kept = "Kept" if rule.startswith("marked_") else "Left out"
        yield _section(f"{kept}, for example: {rule.replace('_', ' ')}", "".join(examples))


def _excerpt(source: str, text: str) -> str:
    cut = text[:EXCERPT_CHARS] + ("…" if len(text) > EXCERPT_CHARS else "")
    return f"<small>{escape(source)}</small><pre>{escape(cut)}</pre>"


def _text(record: dict[str, object]) -> str:
    text = record.get("text")
    if isinstance(text, str):
        return text
    shown = {key: value for key, value in record.items() if key not in ("sha256", "source", "tokens")}
    return json.dumps(shown, ensure_ascii=False, indent=1)


def _records(file: Path) -> Iterator[dict[str, object]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise Corrupt(f"{file}:{number}: is not what was written; prepare the data again", param=CARD)
            yield record
