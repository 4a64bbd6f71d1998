"""The child that ``everlearn.bundles.inspection`` runs: looks into a bundle's graphs, chat templates and tokenizer.

It tells each file's name before it looks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from everlearn.errors import InvalidInput, Unsupported
from everlearn.processes.child import answer
from everlearn.progress import Progress

MAX_NESTING = 64
# onnxruntime's own operators; everything else is a library that a bundle would have to bring along.
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
FORBIDDEN_OPS = frozenset({"EPContext", "PyOp"})

MESSAGES: list[dict[str, str]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]


class Refused(Exception):
    """What is wrong with a file."""


def inspect(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Raises InvalidInput naming the file and what is wrong with it; Unsupported where a library is missing."""
    directory = Path(request["directory"])
    for path in request["files"]:
        progress(path, None)
        try:
            look(directory, path)
        except Refused as refused:
            raise InvalidInput(f"{path}: {refused}", param=path) from None
        except ImportError as error:
            missing = error.name or str(error)
            raise Unsupported(f"looking into {path} needs {missing}: pip install 'everlearn[edge]'") from None
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever a reader of hostile bytes raises)
            raise InvalidInput(
                f"{path}: cannot be read: {type(error).__name__}: {error}", param=path
            ) from None
    return {}


def look(directory: Path, path: str) -> None:
    """Raises Refused."""
    file = directory / path
    if path.lower().endswith(".onnx"):
        check_graph(directory, file)
    elif file.name == "tokenizer.json":
        check_tokenizer(file)
    else:
        for template in templates(file):
            check_template(template)


# Graphs ------------------------------------------------------------------------------------------------------


def check_graph(directory: Path, file: Path) -> None:
    """Operators that onnxruntime itself brings, and tensors that lie inside the bundle."""
    from onnx import ModelProto

    try:
        model: Any = ModelProto.FromString(file.read_bytes())
    except Exception as error:  # noqa: BLE001 (whatever a parser of hostile bytes raises)
        raise Refused(f"is not an ONNX graph ({type(error).__name__})") from None
    if not model.graph.node:
        raise Refused("is not an ONNX graph (it has no node)")
    check_age(model)
    functions = {(function.domain, function.name): function for function in model.functions}
    calls: dict[tuple[str, str], set[tuple[str, str]]] = {key: set() for key in functions}
    for nodes, owner in ((model.graph.node, None), *((f.node, key) for key, f in functions.items())):
        for node in walk_nodes(nodes):
            key = (node.domain, node.op_type)
            if key in functions:
                if owner:
                    calls[owner].add(key)
            elif node.op_type in FORBIDDEN_OPS or node.domain not in DOMAINS:
                raise Refused(
                    f"uses the operator {node.domain or 'ai.onnx'}:{node.op_type}, which bundles may not"
                )
    check_calls(calls)
    for tensor in walk_tensors(model):
        check_external_data(directory, file, tensor)


def check_age(model: Any) -> None:
    """The graph is of a form that the installed libraries know."""
    from onnx import IR_VERSION
    from onnx.defs import onnx_opset_version

    newest = {"opset": onnx_opset_version(), "format": IR_VERSION}
    opset = max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)
    for what, version in (("opset", opset), ("format", model.ir_version)):
        if version > newest[what]:
            raise Refused(
                f"has ONNX {what} {version}, and versions up to {newest[what]} are known here: upgrade onnx and "
                "onnxruntime, or export it for an older one"
            )


def walk_nodes(nodes: Any, depth: int = 0) -> Iterator[Any]:
    """Every node, those of subgraphs too."""
    if depth > MAX_NESTING:
        raise Refused(f"nests graphs deeper than {MAX_NESTING} levels")
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                yield from walk_nodes(graph.node, depth + 1)


def check_calls(calls: dict[tuple[str, str], set[tuple[str, str]]]) -> None:
    """Chains of functions are short and end: onnxruntime follows them on the stack."""
    remaining = dict(calls)
    for _ in range(MAX_NESTING):
        leaves = {key for key, called in remaining.items() if not called & remaining.keys()}
        remaining = {key: called for key, called in remaining.items() if key not in leaves}
        if not remaining:
            return
    raise Refused(f"chains functions deeper than {MAX_NESTING}, or in a circle")


def walk_tensors(message: Any) -> Iterator[Any]:
    """Every tensor anywhere in a protobuf message, wherever the format may grow a place for one."""
    pending = [message]
    while pending:
        current = pending.pop()
        if current.DESCRIPTOR.name == "TensorProto":
            yield current
            continue
        for field, value in current.ListFields():
            if field.message_type is not None:
                pending.extend(value if hasattr(value, "__len__") else [value])


def check_external_data(directory: Path, file: Path, tensor: Any) -> None:
    if not tensor.external_data:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    target = (file.parent / location).resolve()
    inside = target.is_relative_to(directory.resolve()) and ".." not in Path(location).parts
    if not location or Path(location).is_absolute() or not inside:
        raise Refused(f"keeps the tensor {tensor.name!r} in {location!r}, outside the bundle")
    if not target.is_file():
        raise Refused(f"keeps the tensor {tensor.name!r} in {location!r}, which is missing")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError:
        raise Refused(f"places the tensor {tensor.name!r} at something that is not a number") from None
    if offset < 0 or length < 0 or offset + length > target.stat().st_size:
        raise Refused(f"places the tensor {tensor.name!r} beyond the end of {location!r}")


# Chat templates ----------------------------------------------------------------------------------------------


def templates(file: Path) -> list[str]:
    """The templates in a .jinja file, or in a JSON file's ``chat_template``."""
    text = file.read_text(encoding="utf-8", errors="strict")
    if file.suffix == ".jinja":
        return [text]
    config = json.loads(text)
    if not isinstance(config, dict):
        raise Refused("is not a JSON object")
    return list(strings(cast("dict[str, Any]", config).get("chat_template")))


def strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value: templates come alone, in a list, or under a name."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:  # pyright: ignore
            yield from strings(item)


def check_template(source: str) -> None:
    """Renders a conversation in the sandbox that engines use; the template's own complaints about it are fine."""
    from jinja2 import TemplateError, TemplateSyntaxError, nodes
    from jinja2.exceptions import SecurityError

    from everlearn.chat.budget import TooMuch
    from everlearn.chat.template import sandbox

    environment = sandbox()
    try:
        for node in environment.parse(source).find_all(nodes.Getattr):
            if node.attr.startswith("_"):
                raise Refused(f"its chat template reaches for {node.attr!r} on line {node.lineno}")
        template = environment.from_string(source)
    except TemplateSyntaxError as error:
        raise Refused(f"its chat template has an error on line {error.lineno}: {error.message}") from None
    except TemplateError as error:
        raise Refused(f"its chat template {error}") from None
    context = {"messages": MESSAGES, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
    try:
        template.render(**context, tools=None, documents=None)
    except SecurityError as error:
        raise Refused(f"its chat template is unsafe: {error}") from None
    except TooMuch as error:
        raise Refused(f"its chat template {error}") from None
    except TemplateError:
        return


# Tokenizers --------------------------------------------------------------------------------------------------


def check_tokenizer(file: Path) -> None:
    """The library that engines read it with reads it."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(file))  # pyright: ignore[reportUnknownMemberType]
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001 (tokenizers raises Exception itself, and panics)
        raise Refused(f"is not a tokenizer that can be read: {error}") from None


if __name__ == "__main__":
    answer(inspect)
