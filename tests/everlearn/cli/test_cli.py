import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from everlearn import __version__
from everlearn.cli.commands import app
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.support.tiny_models import write_llama

HEAVY = {
    "torch",
    "transformers",
    "onnxruntime",
    "onnx",
    "numpy",
    "sqlalchemy",
    "pydantic",
    "rich",
    "fsspec",
    "asyncio",
}


@pytest.fixture(autouse=True)
def home(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERLEARN_HOME", str(settings.home))
    return settings.home


def run(*arguments: str, code: int = 0) -> Any:
    """The program's answer, which must end with ``code``."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    return result


def run_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
    command = [sys.executable, "-m", "everlearn", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=60)


@pytest.fixture
def models(settings: Settings, add: Any) -> Registry:
    """tiny@1 (safetensors), tiny@2 (onnx, its child, champion)."""
    registry = Registry(settings)
    parent = add(registry)
    add(registry, format="onnx", parent=parent.digest, recipe={"bits": 4}, metrics={"perplexity": 12.5})
    return registry


def test_help_loads_no_library_that_takes_time() -> None:
    code = "import sys; from everlearn.cli.commands import app\ntry: app(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and "compress" in done.stdout
    assert HEAVY & set(done.stderr.split()) == set()


def test_help_documents_every_exit_code() -> None:
    text = " ".join(process("--help").stdout.split())
    assert re.search(r"Exit codes: 0 .* 1 .* 2 .* 70 .* 130 ", text)


def test_ls_and_show_tell_what_is_there(models: Registry) -> None:
    table = run("ls").stdout
    assert "tiny@2" in table and "champion" in table and "tiny@1" in table
    listed = run_json("ls")
    assert [(one["ref"], one["aliases"]) for one in listed] == [("tiny@2", ["champion"]), ("tiny@1", [])]
    shown = run_json("show", "tiny")
    assert shown["ref"] == "tiny@2"
    assert shown["lineage"] == ["tiny@2", "tiny@1"]
    assert shown["bundle"]["recipe"] == {"bits": 4}
    assert Path(shown["path"]).is_dir()
    text = run("show", "tiny@champion", "--verify").stdout
    assert "tiny@2 ← tiny@1" in text and "metrics.perplexity" in text and "12.5" in text
    assert run_json("ls", "tiny") == listed


def test_an_empty_registry_says_how_to_begin() -> None:
    result = run("ls")
    assert "everlearn import smollm2" in result.stderr and result.stdout == ""
    assert run_json("ls") == []


def test_promote_rollback_and_alias_move_names(models: Registry) -> None:
    assert run_json("promote", "tiny@1") == {"champion": 1, "previous": 2}
    assert run_json("rollback", "tiny") == {"champion": 2, "previous": 1}
    assert run_json("alias", "tiny@1", "stable") == {"champion": 2, "previous": 1, "stable": 1}
    assert "tiny@champion = tiny@2" in run("alias", "tiny", "stable", "--remove").stdout
    assert "stable" not in models.aliases("tiny")


def test_rm_removes_a_version_and_frees_its_space(models: Registry) -> None:
    assert "champion" in run("rm", "tiny@2", code=1).stderr
    assert "2 versions; remove one as tiny@2, or add --yes" in run("rm", "tiny", code=2).stderr
    assert run_json("rm", "tiny", "--yes") == ["tiny@2", "tiny@1"]
    assert [path for path in models.settings.directory("store").iterdir() if path.is_dir()] == []


def test_gc_reports_what_it_removed(models: Registry) -> None:
    digests = {version.digest for version in models.delete("tiny")}
    found = run_json("gc")
    assert set(found["bundles"]) == digests and found["staging"] == 0
    assert run("gc").stdout == "removed 0 bundles and 0 unfinished folders\n"


def test_keys_are_created_listed_without_secrets_and_revoked() -> None:
    created = run(
        "keys", "create", "ci", "--model", "tiny", "--requests-per-minute", "5", "--expires-in", "30d"
    )
    secret = created.stdout.strip()
    assert secret.startswith("el-") and "not shown again" in created.stderr
    listed = run("keys", "ls")
    assert "ci" in listed.stdout and secret not in listed.stdout
    (key,) = run_json("keys", "ls")
    assert key["models"] == ["tiny"] and key["requests_per_minute"] == 5 and "hash" not in key
    assert run_json("keys", "create", "other")["secret"].startswith("el-")
    assert "revoked" in run("keys", "revoke", key["id"]).stdout
    assert "revoked" in run("keys", "ls").stdout
    assert "nobody" in run("keys", "revoke", "nobody", code=1).stderr
    assert [act["act"] for act in run_json("audit", "--limit", "2")] == ["key.revoke", "key.create"]
    assert key["id"] in run("audit").stdout and secret not in run("audit").stdout
    assert "30d" in run("keys", "create", "x", "--expires-in", "soon", code=2).stderr


def test_config_shows_every_value_with_its_origin_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLEARN_REDIS_URL", "redis://:s3cret@localhost")
    Path("everlearn.yaml").write_text("serve:\n  port: 9000\n")
    found = run_json("config")
    assert found["serve.port"] == {"value": 9000, "origin": "everlearn.yaml:2"}
    assert found["home"]["origin"] == "env EVERLEARN_HOME"
    assert found["serve.host"]["origin"] == "default"
    assert "s3cret" not in run("config").stdout + json.dumps(found)


def test_doctor_tells_what_will_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = {one["check"]: one["verdict"] for one in run_json("doctor")}
    assert checks["python"] == checks["database"] == checks["store"] == "ok"
    monkeypatch.setenv("EVERLEARN_DATABASE_URL", "sqlite:////proc/nowhere/x.db")
    monkeypatch.setenv("EVERLEARN_STORE_URL", "nosuch://x")
    result = run("doctor", code=1)
    assert re.search(r"bad +database", result.stdout) and re.search(r"bad +store", result.stdout)


def test_doctor_sees_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("EVERLEARN_SERVE__PORT", str(taken.getsockname()[1]))
        (port,) = [one for one in run_json("doctor") if one["check"] == "port"]
    assert port["verdict"] == "note" and "cannot be had" in port["found"]


def test_version_is_printed() -> None:
    assert run("version").stdout == f"{__version__}\n"
    assert run_json("version") == {"everlearn": __version__}


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "message"),
    [
        (["show", "nothing"], {}, 1, "error: there is no model 'nothing'; none is registered yet"),
        (["show", "No Model"], {}, 2, "error: a model's name is 1 to 64 of"),
        (["ls"], {"EVERLEARN_SERVE__PORT": "x"}, 2, "error: EVERLEARN_SERVE__PORT: serve.port: "),
        (["ls"], {"EVERLEARN_HOME": "/proc/nowhere"}, 1, "error: /proc/nowhere: "),
        (["nonsense"], {}, 2, "No such command 'nonsense'"),
        (["compress"], {}, 2, "Missing argument"),
    ],
)
def test_an_error_is_one_clear_message_and_an_exit_code(
    arguments: list[str], variables: dict[str, str], code: int, message: str
) -> None:
    done = process(*arguments, **variables)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_traceback_is_shown_on_demand() -> None:
    done = process("show", "nothing", EVERLEARN_DEBUG="1")
    assert done.returncode == 1 and "Traceback" in done.stderr and "NotFound" in done.stderr


def test_a_fault_of_our_own_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everlearn.registry.registry.Registry.list", lambda _: 1 / 0)
    assert "ZeroDivisionError" in run("ls", code=70).stderr


def test_output_into_a_pipe_is_plain_and_unbroken(models: Registry) -> None:
    done = process("show", "tiny", COLUMNS="40")
    assert "\x1b" not in done.stdout
    assert models.resolve("tiny").digest in done.stdout


def test_shell_completion_knows_the_models(models: Registry) -> None:
    variables = {"_EVERLEARN_COMPLETE": "complete_bash", "COMP_WORDS": "everlearn show ti", "COMP_CWORD": "2"}
    code = "from everlearn.cli.commands import app; app(prog_name='everlearn')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment
    )
    assert "tiny" in done.stdout.split(), done


def test_models_whose_files_give_one_name_are_told_and_so_is_a_template_without_an_end(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "模型"
    write_llama(folder)
    first = run("import", str(folder))
    assert first.stdout.startswith("moxing@1") and "note" not in first.stderr
    other = folder.rename(tmp_path / "磨行")
    (other / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    second = run("import", str(other))
    assert second.stdout.startswith("moxing@2") and "moxing was there already" in second.stderr
    assert "note: the chat template writes no token that ends an answer: <|im_end|> is put" in second.stderr
    shown = run("show", "moxing@2").stdout
    assert re.search(r"stops at +<\|im_end\|>", shown) and "writes no token" in shown
