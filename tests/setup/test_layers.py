"""Who may import whom, read from the sources: imports inside functions and under TYPE_CHECKING count like any other.

EXPECTED names what breaks a rule today. Whoever mends a line takes it out; a line that no longer breaks one fails, too.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

MAY_IMPORT = {
    "everlearn": (),
    "train": ("everlearn",),
    "compress": ("everlearn", "train"),
    "continual": ("everlearn", "train", "compress"),
    "serve": ("everlearn", "continual.queue", "continual.recipe"),
    "deploy": ("everlearn", "compress"),
}
"""Each room, and the packages and modules outside of it that it may import."""

MAX_MODULES = 16
MAX_LINES = 500

EXPECTED: set[str] = set()

STARTS_A_MODULE = ("run_child", "python", "import_module")
"""Functions whose first argument is the name of a module."""

DOTTED = re.compile(rf"(?<![\w./-])(?:{'|'.join(MAY_IMPORT)})(?:\.[A-Za-z_]\w*)+(?![\w-]|\.\w)")


def test_rooms_import_only_what_their_layer_allows() -> None:
    found = {
        f"import: {importer} -> {imported}"
        for importer, all_imported in graph().items()
        for imported in all_imported
        if not is_allowed(importer, imported)
    }
    assert found == expected("import")


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert {f"circle: {', '.join(sorted(circle))}" for circle in circles(graph())} == expected("circle")


def test_every_module_named_by_a_string_exists() -> None:
    found = {
        f"string: {path.relative_to(REPOSITORY)}: {name}"
        for path in (*modules().values(), *beside_the_rooms())
        for name in named_in_strings(path)
        if not is_there(name)
    }
    assert found == expected("string")


def test_every_entry_point_names_something_that_exists() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    groups = [project["scripts"], *project["entry-points"].values()]
    targets = [target.replace(":", ".") for group in groups for target in group.values()]
    assert targets and [target for target in targets if not is_there(target)] == []


def test_no_folder_has_more_modules_than_a_newcomer_reads() -> None:
    folders = [
        path.parent for path in (*modules().values(), *beside_the_rooms()) if not path.stem.startswith("__")
    ]
    found = {
        f"folder: {folder.relative_to(REPOSITORY)}"
        for folder in folders
        if folders.count(folder) > MAX_MODULES
    }
    assert found == expected("folder")


def test_no_file_is_longer_than_one_idea() -> None:
    scripts = [path for room in MAY_IMPORT for path in (REPOSITORY / room).rglob("*.js")]
    found = {
        f"lines: {path.relative_to(REPOSITORY)}"
        for path in (*modules().values(), *beside_the_rooms(), *scripts)
        if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES
    }
    assert found == expected("lines")


def test_the_check_sees_an_import_however_it_is_hidden(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from train.loop import Loop\n"
        "def f():\n    import serve.gateway.app\n    from compress import export as e, nothing\n"
    )
    assert set(imports(source)) == {"train.loop", "serve.gateway.app", "compress.export", "compress"}
    assert not is_allowed("everlearn.settings", "train.loop") and not is_allowed(
        "serve.cli", "continual.pipeline"
    )
    assert is_allowed("serve.cli", "continual.queue.jobs") and is_allowed("train.run", "train.loop")
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()})) == [{"a", "b", "c"}]
    nowhere = "nowhere"  # put in here, so that this file's own strings name nothing that is not there
    one, other = tmp_path / "text.py", tmp_path / "call.py"
    one.write_text(
        f'"""See ``train.loop.{nowhere}``."""\nf("compress.targets.{nowhere}", "train.recipe", "serve.port")\n'
    )
    other.write_text(f'run_child("compress.{nowhere}.vllm", {{}})\npython("serve.gateway")\n')
    missing = [name for path in (one, other) for name in named_in_strings(path) if not is_there(name)]
    assert sorted(missing) == [
        f"compress.{nowhere}.vllm",
        f"compress.targets.{nowhere}",
        f"train.loop.{nowhere}",
    ]


def expected(kind: str) -> set[str]:
    return {line for line in EXPECTED if line.startswith(f"{kind}: ")}


@cache
def modules() -> dict[str, Path]:
    """Every module and package of the rooms by its dotted name."""
    found = {}
    for room in MAY_IMPORT:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def beside_the_rooms() -> list[Path]:
    """The files of tests and benchmarks: they may import anything, and keep to the other rules."""
    return sorted(path for folder in ("tests", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def graph() -> dict[str, set[str]]:
    return {name: set(imports(path)) - {name} for name, path in modules().items()}


def imports(path: Path) -> Iterator[str]:
    """The rooms' modules that a file imports, wherever in it; ``from a import b`` is ``a.b`` where that is a module."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{path}:{node.lineno}: imports are written in full"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules() else node.module for name in whole]
        else:
            continue
        yield from (name for name in names if name in modules())


def is_allowed(importer: str, imported: str) -> bool:
    room = importer.partition(".")[0]
    return any(f"{imported}.".startswith(f"{allowed}.") for allowed in (room, *MAY_IMPORT[room]))


def circles(edges: dict[str, set[str]]) -> Iterator[set[str]]:
    """The groups of modules each of which reaches every other of its group."""
    reached = {name: reach(edges, name) for name in edges}
    for name in sorted(edges):
        group = {other for other in reached[name] if name in reached[other]}
        if group and name == min(group):
            yield group


def reach(edges: dict[str, set[str]], start: str) -> set[str]:
    """What is imported from ``start`` on, over any number of imports; ``start`` itself only by a circle."""
    found: set[str] = set()
    todo = [start]
    while todo:
        new = edges[todo.pop()] - found
        found |= new
        todo.extend(new)
    return found


def named_in_strings(path: Path) -> Iterator[str]:
    """Dotted names in strings and docstrings whose beginning is a room's module or folder.

    Where a child process is started, its module's name counts whatever it begins with. ``serve.port`` is a setting,
    ``everlearn.db`` a file: what no folder or module begins with is not looked at.
    """
    for node in nodes(path):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for match in DOTTED.finditer(node.value):
                if ".".join(match[0].split(".")[:2]) in modules():
                    yield match[0]
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in STARTS_A_MODULE
        ):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and DOTTED.fullmatch(str(first.value)):
                yield str(first.value)


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or something that a module defines."""
    module = name
    while module not in modules():
        module = module.rpartition(".")[0]
        if not module:
            return False
    attribute = name[len(module) + 1 :].partition(".")[0]
    return not attribute or attribute in defined(modules()[module])


@cache
def defined(path: Path) -> set[str]:
    """Names that a module's top level defines, imports or assigns."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found
