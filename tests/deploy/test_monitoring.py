"""The dashboard and the alerts ask for what a real gateway tells, by its right names, labels and values."""

import json
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import serve.gateway.app  # noqa: F401 - with it every error that a gateway counts is defined
from everlearn.errors import EverlearnError
from tests.serve.gateway.conftest import RunningGateway, wait_until

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
PROMETHEUS_OWN = {"job", "instance"}
OPERATORS = {"and", "or", "unless"}
EXPRESSIONS = {rule["alert"]: rule["expr"] for rule in RULES} | {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}

Labels = dict[str, set[str]]


@pytest.fixture(scope="module")
def told() -> Iterator[dict[str, Labels]]:
    """Per name of a sample, its labels and their values, after good requests, refused ones and a broken engine."""
    home = Path(tempfile.mkdtemp(prefix="gw"))
    gateway = RunningGateway(home, fallbacks='[{"model": "x", "to": ["m"]}]')
    try:
        gateway.add_engine("m")
        broken = gateway.add_engine("m", id="m-broken")
        broken.refuse()
        for _ in range(4):
            assert gateway.chat(stream=True).status_code == 200
        wait_until(
            lambda: gateway.metric("everlearn_retries_total") > 0, "a request went to the other engine"
        )
        assert gateway.chat("x").status_code == 200
        assert gateway.chat("nobody").status_code == 404
        found: dict[str, Labels] = {"up": {}}
        for family in text_string_to_metric_families(gateway.client.get("/metrics").text):
            for sample in family.samples:
                labels = found.setdefault(sample.name, defaultdict(set))
                for name, value in sample.labels.items():
                    labels[name].add(value)
        yield found
    finally:
        gateway.stop()
        shutil.rmtree(home)


def codes(kind: type[EverlearnError] = EverlearnError) -> set[str]:
    """Of every error that there is."""
    return {kind.code}.union(*(codes(each) for each in kind.__subclasses__()))


def selectors(expression: str) -> list[tuple[str, dict[str, str]]]:
    """Names of metrics with their matchers: `rate(a{b="c"}[5m])` gives ("a", {"b": "c"})."""
    plain = re.sub(r"\[[^\]]*\]|\b(by|on)\s*\([^)]*\)", "", expression)
    found = re.findall(r"([a-z_]\w*)\b(?!\s*\()(?:\{([^}]*)\})?", plain)
    return [
        (name, dict(re.findall(r'(\w+)=~?"([^"]*)"', matchers)))
        for name, matchers in found
        if name not in OPERATORS
    ]


def grouped(expression: str) -> set[str]:
    return {
        label
        for group in re.findall(r"\bby\s*\(([^)]*)\)", expression)
        for label in re.findall(r"\w+", group)
    }


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_an_expression_asks_for_what_the_gateway_tells(expression: str, told: dict[str, Labels]) -> None:
    found = selectors(expression)
    assert found
    for name, matchers in found:
        assert name in told, name
        for label, pattern in matchers.items():
            assert label in told[name] or label in PROMETHEUS_OWN, (name, label)
            if label == "code":
                assert set(pattern.split("|")) <= codes()
            elif not pattern.startswith("$") and label not in PROMETHEUS_OWN:
                assert any(re.fullmatch(pattern, value) for value in told[name][label]), (name, pattern)
    known = PROMETHEUS_OWN.union(*(told[name] for name, _ in found))
    assert grouped(expression) <= known


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_an_expression_is_well_formed(expression: str) -> None:
    open_ones = []
    for sign in re.findall(r"[()\[\]{}]", re.sub(r'"[^"]*"', "", expression)):
        if sign in "([{":
            open_ones.append(sign)
        else:
            assert open_ones and open_ones.pop() + sign in ("()", "[]", "{}")
    assert not open_ones and expression.count('"') % 2 == 0
    for quantile in re.findall(r"histogram_quantile\(([^,]*), sum by \(([^)]*)\) \(rate\((\w+)", expression):
        assert 0 < float(quantile[0]) < 1 and "le" in quantile[1] and quantile[2].endswith("_bucket")
    assert expression.count("histogram_quantile") == len(
        re.findall(r"histogram_quantile\([^,]*, sum by \(", expression)
    )
    for name in re.findall(r"rate\((\w+)", expression):
        assert name.endswith(("_total", "_bucket", "_count", "_sum")), "a rate is of what only grows"


def test_an_alert_speaks_of_labels_that_it_has() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        spoken = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        assert spoken <= (grouped(rule["expr"]) | PROMETHEUS_OWN), rule["alert"]
        assert {"summary", "description"} == rule["annotations"].keys()


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place: dict[str, Any] = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, panel["title"]
                taken.add((x, y))
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {
        "datasource",
        "job",
        "model",
    }
