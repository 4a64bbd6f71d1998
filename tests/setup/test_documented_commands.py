"""Every command and option that the README and the docs show exists."""

import re
from typing import Any

import pytest
from typer.main import get_command

from everlearn.cli.commands import app
from tests.setup.test_architecture_page import PAGES

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands() -> dict[str, Any]:
    """Every command by its words, as in ``keys create``."""
    found: dict[str, Any] = {}

    def add(group: Any, words: tuple[str, ...]) -> None:
        for name, command in group.commands.items():
            found[" ".join([*words, name])] = command
            if hasattr(command, "commands"):
                add(command, (*words, name))

    add(get_command(app), ())
    return found


def shown() -> list[tuple[str, str]]:
    """Command lines in code, with the page that shows them."""
    lines = []
    for page in PAGES:
        text = page.read_text()
        code = [block for kind, block in FENCED.findall(text) if kind in ("", "sh")]
        code += [f"{each}\n" for each in re.findall(r"`(everlearn [^`\n]+)`", FENCED.sub("", text))]
        lines += [
            (page.name, line) for block in code for line in re.findall(r"\beverlearn ([a-z][^\n#|]*)", block)
        ]
    return lines


def test_every_command_line_shown_exists() -> None:
    known = commands()
    assert len(shown()) > 60
    wrong = [line for line in shown() if problem(line[1], known)]
    assert not wrong


def problem(line: str, known: dict[str, Any]) -> bool:
    words = line.split()
    name = next((one for n in (3, 2) if (one := " ".join(words[:n])) in known), words[0])
    if name not in known or (hasattr(known[name], "commands") and len(words) > len(name.split())):
        return True
    options = {option for each in known[name].params for option in (*each.opts, *each.secondary_opts)} | {
        "--help"
    }
    return any(word.partition("=")[0] not in options for word in words if word.startswith("--"))


@pytest.mark.parametrize(
    "line", ["nothing smollm2", "keys nothing", "serve --nothing", "compress smollm2 --two int4-onnx"]
)
def test_the_check_sees_what_does_not_exist(line: str) -> None:
    assert problem(line, commands())
