import os
import stat
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from everlearn.errors import ConfigError
from everlearn.settings import Settings, load_settings, origins, without_password


def test_defaults_work_and_say_that_they_are_defaults() -> None:
    settings = load_settings()
    assert settings.home == Path("~/.everlearn").expanduser()
    assert settings.serve.port == 8000
    assert set(origins(settings).values()) == {"default"}


def test_environment_wins_over_file_and_each_value_knows_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("everlearn.yaml").write_text("log_level: debug\nserve:\n  port: 9000\n  host: 127.0.0.2\n")
    monkeypatch.setenv("EVERLEARN_SERVE__PORT", "9001")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///elsewhere.db")
    settings = load_settings()
    assert (settings.serve.port, settings.serve.host) == (9001, "127.0.0.2")
    assert settings.database_url == "sqlite:///elsewhere.db"
    found = origins(settings)
    assert found["serve.port"] == "env EVERLEARN_SERVE__PORT"
    assert found["serve.host"] == "everlearn.yaml:4"
    assert found["log_level"] == "everlearn.yaml:1"
    assert found["database_url"] == "env DATABASE_URL"
    assert found["onnx.slots"] == "default"


def test_a_variable_of_our_own_wins_over_a_shared_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///shared.db")
    monkeypatch.setenv("EVERLEARN_DATABASE_URL", "sqlite:///own.db")
    assert load_settings().database_url == "sqlite:///own.db"


def test_everlearn_config_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("serve: {port: 9002}")
    monkeypatch.setenv("EVERLEARN_CONFIG", str(other))
    assert load_settings().serve.port == 9002
    monkeypatch.setenv("EVERLEARN_CONFIG", str(tmp_path / "missing.yaml"))
    with pytest.raises(ConfigError, match=r"missing\.yaml, which is not a file"):
        load_settings()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "serve:\n  prot: 9000\n",
            "everlearn.yaml:2: unknown setting 'serve.prot'; did you mean 'serve.port'?",
        ),
        ("hom: /tmp\n", "everlearn.yaml:1: unknown setting 'hom'; did you mean 'home'?"),
        ("serve:\n  host: x\n  port: many\n", "everlearn.yaml:3: serve.port: "),
        ("serve:\n  port: 70000\n", "everlearn.yaml:2: serve.port: "),
        ("serve: 3\n", "everlearn.yaml:1: serve: "),
        ("log_level: loud\n", "everlearn.yaml:1: log_level: "),
        ("- a\n", "everlearn.yaml:1: settings are a mapping"),
        ("serve: {port: 1}\nserve: {port: 2}\n", "everlearn.yaml:2: 'serve' is already set on line 1"),
        ("serve:\n\t- x", "everlearn.yaml:2: not valid YAML"),
        ("1: 2\n", "everlearn.yaml:1: a setting's name is a word"),
    ],
)
def test_a_fault_in_the_file_is_told_with_its_line(content: str, message: str) -> None:
    Path("everlearn.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("EVERLEARN_SERVE__PORT", "many", "EVERLEARN_SERVE__PORT: serve.port: "),
        (
            "EVERLEARN_SERVE__PROT",
            "1",
            "EVERLEARN_SERVE__PROT is not a setting; did you mean 'EVERLEARN_SERVE__PORT'?",
        ),
        ("EVERLEARN_LOGLEVEL", "info", "EVERLEARN_LOGLEVEL is not a setting"),
        ("EVERLEARN_SERVE", "many", "error parsing value"),
    ],
)
def test_a_fault_in_a_variable_is_told_with_its_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert caught.value.message.startswith(message)


def test_variables_that_kubernetes_sets_for_a_service_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLEARN_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("EVERLEARN_PORT_8000_TCP", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("EVERLEARN_SERVICE_HOST", "10.0.0.1")
    assert load_settings().serve.port == 8000


def test_environment_gives_a_child_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url="sqlite:///x.db", log_level="debug")
    settings = settings.model_copy(update={"serve": settings.serve.model_copy(update={"port": 1234})})
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings().model_dump() == settings.model_dump()


def test_directories_are_readable_by_their_owner_alone(settings: Settings) -> None:
    for path in (settings.directory("run"), settings.directory("tmp"), settings.home):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_relative_home_does_not_move_with_the_current_directory(tmp_path: Path) -> None:
    settings = Settings(home=Path("here"))
    os.chdir("/")
    assert settings.home == tmp_path / "here"


@pytest.mark.parametrize(
    "url", ["postgresql://me:s3cret@db/x", "s3://key:s3cret@bucket", "redis://:s3cret@h:1"]
)
def test_a_password_is_never_shown(url: str) -> None:
    assert "s3cret" not in without_password(url)


@given(st.text() | st.binary())
def test_any_file_is_settings_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, content: str | bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "e.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    _load(path)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["home", "serve", "onnx", "log_level", "database_url", "serve.port", "x"])


@given(
    st.dictionaries(keys, json_like | st.dictionaries(st.sampled_from(["port", "slots", "host"]), json_like))
)
def test_any_values_are_settings_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, values: object
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "e.yaml"
    path.write_text(yaml.safe_dump(values))
    _load(path)


@given(
    port=st.integers(0, 65535),
    slots=st.integers(1, 1024),
    host=st.sampled_from(["::1", "0.0.0.0", "localhost"]),
)
def test_written_settings_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, port: int, slots: int, host: str
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "e.yaml"
    path.write_text(yaml.safe_dump({"serve": {"port": port, "host": host}, "onnx": {"slots": slots}}))
    settings = _load(path)
    assert settings and (settings.serve.port, settings.serve.host, settings.onnx.slots) == (port, host, slots)


def _load(path: Path) -> Settings | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERLEARN_CONFIG", str(path))
        try:
            return load_settings()
        except ConfigError as error:
            assert str(path) in error.message or error.param
            return None
