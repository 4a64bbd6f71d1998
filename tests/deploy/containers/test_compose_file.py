"""compose.yaml, the Dockerfile and .env.example: valid, hardened, explained, and without a default password."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from everlearn.settings import Settings
from serve.supervisor.watched import Patience
from tests.support.serve.composed import FOLDER, OURS, REPOSITORY, resolved

BIN = Path(sys.executable).parent
COMPOSE = FOLDER / "compose.yaml"
EXAMPLE = FOLDER / ".env.example"
ALL = ("setup", "gateway", "engines", "engines-gpu", "worker", "postgres", "valkey", "prometheus", "grafana")


@pytest.fixture(scope="module")
def file(env_file: Path) -> dict[str, Any]:
    return resolved(env_file)


@pytest.fixture(scope="module")
def passwords(env_file: Path) -> list[str]:
    found = re.findall(r"^\w+_PASSWORD=(\w+)$", env_file.read_text(), re.MULTILINE)
    assert len(found) == 3
    return found


def test_the_compose_specification_allows_every_line() -> None:
    check = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(
        [BIN / "hadolint", FOLDER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_services_are_those_of_the_documentation(file: dict[str, Any]) -> None:
    assert set(file["services"]) == set(ALL)
    page = (REPOSITORY / "docs" / "compose.md").read_text()
    assert not [name for name in ALL if f"`{name}`" not in page]


@pytest.mark.parametrize("name", ALL)
def test_a_service_has_no_more_rights_than_it_needs(file: dict[str, Any], name: str) -> None:
    service = file["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "pid", "ipc", "env_file"} & service.keys()
    assert str(service["user"]).partition(":")[0] not in ("0", "root")
    assert "mem_limit" in service and "pids_limit" in service
    assert "healthcheck" in service
    assert not [volume for volume in service.get("volumes", []) if "docker.sock" in volume]
    if name != "setup":
        assert service["restart"] == "unless-stopped"


def test_our_services_are_one_user_who_owns_the_home(file: dict[str, Any]) -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert {file["services"][name]["user"] for name in OURS} == {"10001:10001"}
    assert "install -d -o 10001 -g 10001 -m 0700 /var/lib/everlearn" in dockerfile
    assert dockerfile.count("USER 10001:10001") == 3


def test_an_image_is_built_by_one_service_and_its_others_pull_nothing(file: dict[str, Any]) -> None:
    """Builders that work on services at once refuse the second image of the same name."""
    ours = [file["services"][name] for name in OURS]
    built = [service["image"] for service in ours if "build" in service]
    assert sorted(built) == sorted({service["image"] for service in ours})
    assert all(service["pull_policy"] == "never" for service in ours if "build" not in service)


def test_every_volume_has_a_name_and_every_mounted_file_is_there(file: dict[str, Any]) -> None:
    for service in file["services"].values():
        for volume in service.get("volumes", []):
            source, _, mode = volume.split(":", 2) if volume.count(":") == 2 else (*volume.split(":"), "")
            assert source in file["volumes"] or ((FOLDER / source).is_file() and mode == "ro"), volume


def test_ports_are_open_to_this_host_alone_unless_told_otherwise(file: dict[str, Any]) -> None:
    ports = {name: service.get("ports", []) for name, service in file["services"].items()}
    assert {name for name, open in ports.items() if open} == {"gateway", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for open in ports.values() for port in open)
    assert file["networks"]["data"]["internal"] is True
    for name in ("postgres", "valkey"):
        assert file["services"][name]["networks"] == ["data"]


def test_no_command_line_and_no_image_holds_a_password(file: dict[str, Any], passwords: list[str]) -> None:
    for service in file["services"].values():
        said = json.dumps(
            [service.get(key) for key in ("command", "entrypoint", "healthcheck", "build", "labels")]
        )
        assert not [password for password in passwords if password in said]


def test_a_service_is_given_more_time_to_stop_than_it_may_take(file: dict[str, Any]) -> None:
    settings, patience = Settings(), Patience()
    grace_s = {
        name: float(file["services"][name]["stop_grace_period"].removesuffix("s")) for name in OURS[1:]
    }
    drain_s = settings.serve.drain_timeout_s + patience.stop_s
    assert grace_s["gateway"] > settings.serve.drain_timeout_s + 5
    assert min(grace_s["engines"], grace_s["engines-gpu"]) > drain_s + patience.stop_s
    assert grace_s["worker"] > settings.continual.shutdown_s + 10


def test_nothing_starts_before_what_it_needs(file: dict[str, Any]) -> None:
    for name in ("gateway", "engines", "engines-gpu", "worker"):
        needs = {what: how["condition"] for what, how in file["services"][name]["depends_on"].items()}
        assert needs["setup"] == "service_completed_successfully"
        assert needs["postgres"] == needs["valkey"] == "service_healthy"
    assert "engines" in file["services"]["gateway"]["depends_on"]  # and so it stops before them


@pytest.mark.parametrize("name", ["POSTGRES_PASSWORD", "VALKEY_PASSWORD", "GRAFANA_PASSWORD"])
def test_an_example_whose_passwords_are_not_set_is_refused(env_file: Path, tmp_path: Path, name: str) -> None:
    left = tmp_path / ".env"
    left.write_text(re.sub(rf"^{name}=.*$", f"{name}=", env_file.read_text(), flags=re.MULTILINE))
    with pytest.raises(AssertionError, match=f"{name} is missing a value: set it in .env"):
        resolved(left)


def test_the_example_explains_every_variable_and_no_other() -> None:
    used = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    lines = EXAMPLE.read_text().splitlines()
    assert {line.partition("=")[0] for line in lines if re.match(r"\w+=", line)} == used
    for at, line in enumerate(lines):
        if re.match(r"\w+=", line):  # a comment above it, or above its group
            above = [other for other in lines[:at] if not re.match(r"\w+=", other)]
            assert above[-1].startswith("#"), line


def test_the_example_has_the_defaults_of_the_file() -> None:
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE.read_text()))
    said = dict(re.findall(r"^(\w+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE))
    assert {name: said[name] for name in defaults} == defaults


def test_the_settings_of_our_services_exist(file: dict[str, Any]) -> None:
    from everlearn.settings import flatten, variable

    known = {variable(key) for key, _ in flatten(Settings.model_construct().model_dump())}
    for name in OURS:
        given = {key for key in file["services"][name]["environment"] if key.startswith("EVERLEARN_")}
        assert given <= known


def test_nothing_private_can_reach_an_image() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*" and "**/.env" in ignored and ".env" in (REPOSITORY / ".gitignore").read_text()
    assert not re.search(
        r"^(ARG|ENV) .*(PASSWORD|KEY|TOKEN)", (FOLDER / "Dockerfile").read_text(), re.MULTILINE
    )


def test_the_driver_for_postgresql_is_the_one_that_the_tests_run_with() -> None:
    tested = (REPOSITORY / "requirements" / "all.lock").read_text()
    lock = (FOLDER / "postgres.lock").read_text()
    lines = [line.rstrip("\\").strip() for line in lock.splitlines() if not line.startswith("#")]
    assert {line.partition("==")[0] for line in lines if "==" in line} == {"psycopg", "psycopg-binary"}
    assert all(line in tested for line in lines)


def test_grafana_is_given_the_dashboard_and_its_data_source(file: dict[str, Any]) -> None:
    targets = dict(volume.split(":")[:2][::-1] for volume in file["services"]["grafana"]["volumes"])
    [provider] = yaml.safe_load((FOLDER / "grafana" / "dashboards.yaml").read_text())["providers"]
    dashboard = next(path for path in targets if path.startswith(provider["options"]["path"] + "/"))
    assert json.loads((FOLDER / targets[dashboard]).read_text())["panels"]
    [source] = yaml.safe_load((FOLDER / "grafana" / "datasource.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090" and source["isDefault"]
    assert set(file["services"]["grafana"]["networks"]) & set(file["services"]["prometheus"]["networks"])
