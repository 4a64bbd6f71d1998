"""Hostile graphs and templates are refused by name, and the process that asks lives."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from everlearn.bundles.inspection import inspect_contents
from everlearn.errors import InvalidInput

onnx = pytest.importorskip("onnx")
pytest.importorskip("jinja2")

from onnx import TensorProto, helper, numpy_helper


def graph(nodes: list[object] | None = None, initializers: list[object] | None = None) -> object:
    nodes = nodes or [helper.make_node("Identity", ["x"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    return helper.make_graph(nodes, "g", [x], [y], initializers or [])


def model(**fields: object) -> bytes:
    made = helper.make_model(graph(), opset_imports=[helper.make_opsetid("", 20)])
    made.graph.CopyFrom(fields.pop("graph", made.graph))
    made.functions.extend(fields.pop("functions", []))
    return made.SerializeToString()


def external(**place: object) -> object:
    tensor = numpy_helper.from_array(__import__("numpy").zeros(2, "float32"), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def look(directory: Path, content: bytes | str, name: str = "model.onnx") -> None:
    (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    inspect_contents(directory, {name})


def test_a_plain_graph_with_data_beside_it_passes(tmp_path: Path) -> None:
    (tmp_path / "model.onnx.data").write_bytes(bytes(8))
    tensor = external(location="model.onnx.data", offset=0, length=8)
    look(tmp_path, model(graph=graph(initializers=[tensor])))


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ({"location": "../secret"}, "outside the bundle"),
        ({"location": "/etc/passwd"}, "outside the bundle"),
        ({"location": "sub/../../secret"}, "outside the bundle"),
        ({"location": "sub/../data"}, "outside the bundle"),
        ({"location": "link"}, "outside the bundle"),
        ({"location": ""}, "outside the bundle"),
        ({"offset": 0}, "outside the bundle"),
        ({"location": "nowhere"}, "which is missing"),
        ({"location": "data", "offset": 4, "length": 8}, "beyond the end"),
        ({"location": "data", "offset": -1}, "beyond the end"),
        ({"location": "data", "offset": "x"}, "not a number"),
    ],
)
def test_tensors_outside_the_bundle_are_refused(
    tmp_path: Path, place: dict[str, object], problem: str
) -> None:
    (tmp_path / "secret").write_bytes(bytes(8))
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "data").write_bytes(bytes(8))
    (bundle / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInput, match=rf"model\.onnx: keeps the tensor 'w' .*{problem}|{problem}"):
        look(bundle, model(graph=graph(initializers=[external(**place)])))


def test_a_tensor_in_an_attribute_of_a_subgraph_is_found_too(tmp_path: Path) -> None:
    inner = graph([helper.make_node("Constant", [], ["y"], value=external(location="../secret"))])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    with pytest.raises(InvalidInput, match="outside the bundle"):
        look(tmp_path, model(graph=graph([node])))


@pytest.mark.parametrize(
    ("domain", "operator"),
    [
        ("evil", "Op"),
        ("ai.onnx.contrib", "PyOp"),
        ("com.microsoft", "EPContext"),
        ("com.microsoft.extensions", "Tok"),
    ],
)
def test_operators_that_onnxruntime_does_not_bring_are_refused(
    tmp_path: Path, domain: str, operator: str
) -> None:
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    with pytest.raises(InvalidInput, match=rf"uses the operator {domain}:{operator}"):
        look(tmp_path, model(graph=graph([node])))
    inner = helper.make_node("If", ["x"], ["y"], then_branch=graph([node]), else_branch=graph())
    with pytest.raises(InvalidInput, match=rf"uses the operator {domain}:{operator}"):
        look(tmp_path, model(graph=graph([inner])))


def test_operators_of_onnxruntime_and_functions_of_the_model_pass(tmp_path: Path) -> None:
    body = [helper.make_node("Identity", ["x"], ["y"])]
    function = helper.make_function("pkg.own", "F", ["x"], ["y"], body, [helper.make_opsetid("", 20)])
    nodes = [
        helper.make_node("F", ["x"], ["z"], domain="pkg.own"),
        helper.make_node("Gelu", ["z"], ["y"], domain="com.microsoft"),
    ]
    look(tmp_path, model(graph=graph(nodes), functions=[function]))


@pytest.mark.parametrize("length", [3000, 1])
def test_functions_that_chain_without_end_are_refused(tmp_path: Path, length: int) -> None:
    """3000 in a row, or one that calls itself."""
    functions = []
    for number in range(length):
        target = f"F{(number + 1) % length}" if length == 1 else f"F{number + 1}"
        body = [helper.make_node(target if number < length - 1 or length == 1 else "Identity", ["x"], ["y"])]
        body[0].domain = "own" if body[0].op_type != "Identity" else ""
        functions.append(
            helper.make_function("own", f"F{number}", ["x"], ["y"], body, [helper.make_opsetid("", 20)])
        )
    start = helper.make_node("F0", ["x"], ["y"], domain="own")
    with pytest.raises(InvalidInput, match="chains functions deeper than 64, or in a circle"):
        look(tmp_path, model(graph=graph([start]), functions=functions))


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08" * 1000, b"\xff" * 100])
def test_bytes_that_are_no_graph_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"model\.onnx: is not an ONNX graph"):
        look(tmp_path, content)


@pytest.mark.parametrize(("what", "opset", "ir_version"), [("opset 99", 99, 10), ("format 99", 20, 99)])
def test_a_graph_that_is_newer_than_the_libraries_here_is_refused_before_it_is_loaded(
    tmp_path: Path, what: str, opset: int, ir_version: int
) -> None:
    made = helper.make_model(graph(), opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    with pytest.raises(
        InvalidInput, match=rf"has ONNX {what}, and versions up to [0-9]+ are known here: upgrade"
    ):
        look(tmp_path, made.SerializeToString())


CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        CHAT,
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}",
        "{{ strftime_now('%d %b %Y') }}{{ tools | tojson(indent=4, ensure_ascii=False) }}",
        "{{ nothing.at.all }}",
    ],
)
def test_templates_of_real_models_pass(tmp_path: Path, template: str) -> None:
    look(tmp_path, template, "chat_template.jinja")


def endless(depth: int) -> str:
    loops = "".join(f"{{% for {name} in range(99999) %}}" for name in "abcde"[:depth])
    return loops + "{% endfor %}" * depth


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "reaches for '__"),
        ("{{ (''|attr('__class__')).mro() }}", "No filter named 'attr'"),
        ("{{ messages.append(1) }}", "unsafe"),
        (endless(3), "loops without end"),
        ("{{ 'x' * 9999999999 }}", "makes something too large"),
        ("{% for a in range(99999) %}{{ 'x' * 2000 }}{% endfor %}", "writes more than"),
        ("{% for a in range(999999999) %}{% endfor %}", "counts too far"),
        ("line one\n{% if %}", "error on line 2"),
        ("{% import 'os' as os %}{{ os.popen('id') }}", ""),
    ],
)
def test_hostile_templates_are_refused(tmp_path: Path, template: str, problem: str) -> None:
    if not problem:  # there is nothing to import from: the template fails when it runs, and does nothing
        look(tmp_path, template, "chat_template.jinja")
        return
    with pytest.raises(InvalidInput, match=rf"chat_template\.jinja.*({problem})"):
        look(tmp_path, template, "chat_template.jinja")


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: [{"name": "default", "template": CHAT}, {"name": "tool", "template": t}]]
)
def test_a_template_inside_a_configuration_is_looked_into(
    tmp_path: Path, wrap: Callable[[str], object]
) -> None:
    config = {"chat_template": wrap("{{ ''.__class__ }}")}
    with pytest.raises(
        InvalidInput, match=r"tokenizer_config\.json: its chat template reaches for '__class__'"
    ):
        look(tmp_path, json.dumps(config), "tokenizer_config.json")
    look(tmp_path, json.dumps({"model_max_length": 5}), "tokenizer_config.json")
