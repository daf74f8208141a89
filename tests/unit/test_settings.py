"""Where settings come from, what is refused, and that secrets stay secret."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ccat_data_transfer import settings
from ccat_data_transfer.exceptions import ConfigurationError

Configure = Callable[..., None]
SECRET = "s3cr3t-pa55word"  # noqa: S105 - nobody's


@pytest.fixture(autouse=True)
def fresh(configure: Configure) -> None:
    """Every test reads its settings anew."""


@pytest.fixture
def write(tmp_path: Path, configure: Configure) -> Callable[[str], Path]:
    """Makes `text` the settings file."""

    def write(text: str) -> Path:
        file = tmp_path / "settings.toml"
        file.write_text(text, encoding="utf-8")
        configure(settings_file=file)
        return file

    return write


def test_without_environment_and_file_the_defaults_hold() -> None:
    chosen = settings.get()
    assert (chosen.max_attempts, chosen.lease_seconds, chosen.log_level) == (5, 180.0, "INFO")
    assert not chosen.uses_broker
    assert not chosen.allow_volatile_database


def test_the_file_goes_over_the_defaults_and_the_environment_over_both(
    write: Callable[[str], Path], configure: Configure
) -> None:
    write("[default]\nmax_attempts = 7\nlease_seconds = 60\n")
    configure(max_attempts=9)
    chosen = settings.get()
    assert (chosen.max_attempts, chosen.lease_seconds, chosen.worker_concurrency) == (9, 60.0, 4)


def test_the_section_of_the_environment_lies_over_the_default_section(
    write: Callable[[str], Path], configure: Configure
) -> None:
    write(
        "[default]\nmax_attempts = 7\nlease_seconds = 60\n[production]\nmax_attempts = 8\n[staging]\nmax_attempts = 6\n"
    )
    configure(environment="production")
    chosen = settings.get()
    assert (chosen.max_attempts, chosen.lease_seconds) == (8, 60.0)


def test_a_section_that_nobody_chose_is_not_read(write: Callable[[str], Path]) -> None:
    write("[staging]\nmax_attempts = 6\n")
    assert settings.get().max_attempts == 5


def test_an_environment_without_a_section_is_refused(write: Callable[[str], Path], configure: Configure) -> None:
    write("[default]\nmax_attempts = 7\n")
    configure(environment="prodution")
    with pytest.raises(ConfigurationError, match=r"has no section \[prodution\]"):
        settings.get()


def test_a_setting_outside_of_every_section_is_refused_with_where_it_belongs(write: Callable[[str], Path]) -> None:
    write("max_attempts = 7\n")
    with pytest.raises(ConfigurationError, match="'max_attempts' outside of a section") as refused:
        settings.get()
    assert refused.value.remedy == "move it below [default]"


@pytest.mark.parametrize("text", ["[default\n", "[default]\nmax_attempts = \n"])
def test_a_file_that_is_no_toml_is_refused_by_its_name(write: Callable[[str], Path], text: str) -> None:
    file = write(text)
    with pytest.raises(ConfigurationError, match=f"settings file '{file}' cannot be read"):
        settings.get()


def test_a_file_that_is_no_text_is_refused_by_its_name(write: Callable[[str], Path]) -> None:
    file = write("")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=f"settings file '{file}' cannot be read"):
        settings.get()


def test_a_file_that_is_named_and_missing_is_refused(tmp_path: Path, configure: Configure) -> None:
    configure(settings_file=tmp_path / "absent.toml")
    with pytest.raises(ConfigurationError, match=r"absent\.toml' cannot be read"):
        settings.get()


def test_an_unknown_variable_is_refused_because_it_may_be_a_misspelt_one(configure: Configure) -> None:
    configure(max_atempts=3)
    with pytest.raises(ConfigurationError, match="CCAT_DATA_TRANSFER_MAX_ATEMPTS"):
        settings.get()


def test_an_unknown_setting_in_the_file_is_refused(write: Callable[[str], Path]) -> None:
    write("[default]\nmax_atempts = 3\n")
    with pytest.raises(ConfigurationError, match="setting 'max_atempts'"):
        settings.get()


def test_settings_are_read_once_and_do_not_change(configure: Configure) -> None:
    first = settings.get()
    assert settings.get() is first
    with pytest.raises(ValueError, match="frozen"):
        first.max_attempts = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"max_attempts": 0}, "greater than or equal to 1"),
        ({"max_attempts": "many"}, "valid integer"),
        ({"lease_seconds": 0.5}, "greater than or equal to 1"),
        ({"lease_seconds": "nan"}, "'lease_seconds'"),
        ({"lease_seconds": "inf"}, "'lease_seconds'"),
        ({"lease_seconds": 90, "heartbeat_seconds": 31}, "at most a third of lease_seconds"),
        ({"heartbeat_seconds": 0}, "greater than 0"),
        ({"retry_first_delay_seconds": 10, "retry_longest_delay_seconds": 9}, "shorter than retry_first_delay_seconds"),
        ({"retry_first_delay_seconds": -1}, "greater than or equal to 0"),
        ({"retry_longest_delay_seconds": "inf"}, "'retry_longest_delay_seconds'"),
        ({"pause_seconds": "inf"}, "'pause_seconds'"),
        ({"resend_seconds": "inf"}, "'resend_seconds'"),
        ({"manager_interval_seconds": "inf"}, "'manager_interval_seconds'"),
        ({"pause_seconds": 0}, "greater than 0"),
        ({"minimum_archive_copies": 0}, "greater than or equal to 1"),
        ({"schedule_limit": 0}, "greater than or equal to 1"),
        ({"worker_concurrency": 0}, "greater than or equal to 1"),
        ({"worker_concurrency": 257}, "less than or equal to 256"),
        ({"log_level": "LOUD"}, "'DEBUG', 'INFO'"),
        ({"broker_url": "memory://"}, "Redis or RabbitMQ, not 'memory'"),
        ({"broker_url": "filesystem://"}, "other transports lose messages"),
        ({"broker_url": "sqla+sqlite:///x"}, "Redis or RabbitMQ"),
    ],
    ids=str,
)
def test_an_unsafe_value_is_refused_with_its_name_and_the_reason(
    configure: Configure, values: dict[str, object], reason: str
) -> None:
    configure(**values)
    with pytest.raises(ConfigurationError, match=reason) as refused:
        settings.get()
    assert any(name in str(refused.value) for name in values)


def test_every_bad_setting_is_named_at_once(configure: Configure) -> None:
    configure(max_attempts=0, log_level="LOUD")
    with pytest.raises(ConfigurationError, match=r"MAX_ATTEMPTS.*; .*LOG_LEVEL|LOG_LEVEL.*; .*MAX_ATTEMPTS"):
        settings.get()


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+socket", "amqp", "amqps", "pyamqp"])
def test_redis_and_rabbitmq_are_brokers(configure: Configure, scheme: str) -> None:
    configure(broker_url=f"{scheme}://user:{SECRET}@host/0")
    assert settings.get().uses_broker


def test_an_empty_broker_is_none(configure: Configure) -> None:
    configure(broker_url="")
    assert not settings.get().uses_broker


def test_secrets_are_never_shown(configure: Configure) -> None:
    configure(
        database_url=f"postgresql://user:{SECRET}@host/db",
        broker_url=f"redis://:{SECRET}@host/0",
        result_backend_url=f"redis://:{SECRET}@host/1",
    )
    chosen = settings.get()
    assert SECRET in chosen.database
    for shown in (repr(chosen), str(chosen), f"{chosen}", repr(chosen.model_dump()), chosen.model_dump_json()):
        assert SECRET not in shown


@pytest.mark.parametrize(
    "values",
    [
        {"broker_url": f"http://user:{SECRET}@host"},
        {"broker_url": f"{SECRET}@host"},
        {"broker_url": f"{SECRET}:{SECRET}@host"},
        {"database_url": f"postgresql://user:{SECRET}@host", "max_attempts": 0},
        {"max_attempts": SECRET},
        {"lease_seconds": 90, "heartbeat_seconds": 31, "database_url": f"postgresql://user:{SECRET}@host"},
    ],
    ids=["wrong scheme", "no scheme", "only a colon", "beside a bad number", "in a number", "beside a bad pair"],
)
def test_no_error_shows_a_secret(configure: Configure, values: dict[str, object]) -> None:
    configure(**values)
    with pytest.raises(ConfigurationError) as refused:
        settings.get()
    seen: BaseException | None = refused.value
    while seen is not None:  # a traceback prints the causes too
        assert SECRET not in str(seen)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def test_an_error_in_the_file_shows_no_secret_of_it(write: Callable[[str], Path]) -> None:
    write(f'[default]\ndatabase_url = "postgresql://user:{SECRET}@host"\nmax_attempts = "{SECRET}"\n')
    with pytest.raises(ConfigurationError) as refused:
        settings.get()
    assert SECRET not in str(refused.value)


def test_the_database_is_sqlite_in_the_working_directory_unless_one_is_named(
    tmp_path: Path, configure: Configure
) -> None:
    configure(working_directory=tmp_path)
    assert settings.get().database == f"sqlite:///{tmp_path}/operations.sqlite"
    configure(database_url="")
    assert settings.get().database == f"sqlite:///{tmp_path}/operations.sqlite"
    configure(database_url="postgresql://host/db")
    assert settings.get().database == "postgresql://host/db"


def test_the_working_directory_does_not_move_with_the_process(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    configure(working_directory="work")
    assert settings.get().working_directory == tmp_path / "work"


def test_a_tilde_means_the_home_directory(configure: Configure) -> None:
    configure(working_directory="~/work")
    assert settings.get().working_directory == Path.home() / "work"


def test_a_heartbeat_comes_six_times_a_lease_unless_it_is_set(configure: Configure) -> None:
    configure(lease_seconds=60)
    assert settings.get().heartbeat == 10
    configure(heartbeat_seconds=20)
    assert settings.get().heartbeat == 20


def test_every_setting_says_what_it_is_for() -> None:
    assert all(field.description for field in settings.Settings.model_fields.values())


def test_a_password_in_a_file_that_others_can_read_is_refused(write: Callable[[str], Path]) -> None:
    file = write(f'[default]\nbroker_url = "redis://am:{SECRET}@broker/0"\n')
    file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="can be read by others") as refused:
        settings.get()
    assert SECRET not in str(refused.value)
    file.chmod(0o600)
    assert settings.get().uses_broker


def test_a_file_without_passwords_may_be_read_by_everybody(write: Callable[[str], Path]) -> None:
    write('[default]\nbroker_url = "redis://broker/0"\n').chmod(0o644)
    assert settings.get().uses_broker
