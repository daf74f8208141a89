"""Settings: environment over file over defaults, typed, validated once at start.

Every setting `x` is read from the variable `CCAT_DATA_TRANSFER_X`, else from the TOML file that
`CCAT_DATA_TRANSFER_SETTINGS_FILE` names (section `[default]`, overridden by the section of the environment that
`CCAT_DATA_TRANSFER_ENVIRONMENT` names, such as `[production]`), else from the default below.
"""

import functools
import os
import tomllib
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ccat_data_transfer.exceptions import ConfigurationError

PREFIX = "CCAT_DATA_TRANSFER_"
DEFAULT_SECTION = "default"


class _SectionedToml(PydanticBaseSettingsSource):
    """A TOML file whose top-level tables are environments."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # pragma: no cover - pydantic asks only sources that do not override __call__

    def __call__(self) -> dict[str, Any]:
        file = os.environ.get(PREFIX + "SETTINGS_FILE")
        if not file:
            return {}
        environment = os.environ.get(PREFIX + "ENVIRONMENT", DEFAULT_SECTION)
        try:
            content = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"settings file '{file}' cannot be read: {error}") from error
        if environment not in content and environment != DEFAULT_SECTION:
            raise ConfigurationError(f"settings file '{file}' has no section [{environment}]")
        stray = [key for key, value in content.items() if not isinstance(value, dict)]
        if stray:
            raise ConfigurationError(
                f"settings file '{file}' has '{stray[0]}' outside of a section",
                remedy=f"move it below [{DEFAULT_SECTION}]",
            )
        chosen = {**content.get(DEFAULT_SECTION, {}), **content.get(environment, {})}
        _refuse_readable_secrets(Path(file), chosen)
        return chosen


def _refuse_readable_secrets(file: Path, values: dict[str, Any]) -> None:
    """A file that holds a password must be its owner's alone."""
    secret = [key for key, value in values.items() if isinstance(value, str) and _has_password(value)]
    if secret and file.stat().st_mode & 0o077:
        raise ConfigurationError(
            f"settings file '{file}' holds a password in '{secret[0]}' and can be read by others",
            remedy=f"run `chmod 600 {file}`, or give the setting in the environment",
        )


def _has_password(value: str) -> bool:
    try:
        return urlsplit(value).password is not None
    except ValueError:
        return False


class Settings(BaseSettings):
    """All settings. Durations are in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, allow_inf_nan=False)

    # Read before the others, because they say where the others are.
    settings_file: Path | None = Field(None, description="TOML file with sections per environment")
    environment: str = Field(DEFAULT_SECTION, description="section of the settings file laid over [default]")

    working_directory: Path = Field(
        Path(".ccat_data_transfer"),
        description="folder for the SQLite database and packed packages, when nothing else is configured",
    )
    database_url: SecretStr | None = Field(
        None,
        description="database, e.g. `postgresql://user@host/operations`; default: SQLite in the working directory",
    )
    broker_url: SecretStr | None = Field(
        None,
        description="Celery broker, `redis://...` or `amqp://...`; default: none, work runs from the database alone",
    )
    result_backend_url: SecretStr | None = Field(None, description="Celery result backend; nothing reads it back")
    broker_key_prefix: str = Field("ccat_data_transfer.", description="prefix of all keys in a shared Redis")

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least severe level logged")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`json` is one object a line; `auto` means `console` on a terminal, else `json`"
    )

    lease_seconds: float = Field(
        180.0, ge=1, le=86_400, description="how long an attempt may be silent before it is taken for dead"
    )
    heartbeat_seconds: float | None = Field(
        None, gt=0, description="how often a running attempt extends its lease; default: a sixth of the lease"
    )
    max_attempts: int = Field(5, ge=1, le=1000, description="attempts before an operation fails for good")
    retry_first_delay_seconds: float = Field(10.0, ge=0, description="wait after the first failed attempt; doubles")
    retry_longest_delay_seconds: float = Field(3600.0, ge=0, description="longest wait between two attempts")
    pause_seconds: float = Field(60.0, gt=0, description="how long a location that is unwell is left alone")

    manager_interval_seconds: float = Field(10.0, gt=0, description="pause between two passes that found no work")
    create_limit: int = Field(10_000, ge=1, description="operations created at most in one pass")
    schedule_limit: int = Field(1_000, ge=1, description="operations of one location scheduled at the same time")
    resend_seconds: float = Field(
        600.0, gt=0, description="a scheduled operation that nobody claimed in this time is sent again"
    )

    worker_concurrency: int = Field(4, ge=1, le=256, description="packages carried side by side to one location")
    shutdown_grace_seconds: float = Field(
        45.0,
        ge=0,
        description="how long a Celery worker that is told to stop lets its copies run before it gives them up",
    )
    minimum_archive_copies: int = Field(
        1, ge=1, description="verified copies below which no package is ever called archived"
    )
    health_file: Path | None = Field(
        None, description="file that a service rewrites after each round with what it did and when"
    )
    allow_volatile_database: bool = Field(
        default=False, description="accept a database that may forget a commit at a power cut; for experiments only"
    )

    SECTION: ClassVar[str] = DEFAULT_SECTION

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic passes it by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over file over defaults."""
        return init_settings, env_settings, _SectionedToml(settings_cls)

    @field_validator("working_directory")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("broker_url")
    @classmethod
    def _known_broker(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        scheme, separator, _ = value.get_secret_value().partition("://")
        if scheme not in {"redis", "rediss", "redis+socket", "amqp", "amqps", "pyamqp"}:
            # What is no URL is not shown: it may be a password that lost its URL.
            given = f", not '{scheme}'" if separator and scheme.isalnum() else ""
            raise ValueError(f"the broker must be Redis or RabbitMQ{given} (other transports lose messages)")
        return value

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if self.heartbeat_seconds is not None and self.heartbeat_seconds * 3 > self.lease_seconds:
            raise ValueError(
                "heartbeat_seconds must be at most a third of lease_seconds, or one late heartbeat looks like a death"
            )
        if self.retry_longest_delay_seconds < self.retry_first_delay_seconds:
            raise ValueError("retry_longest_delay_seconds is shorter than retry_first_delay_seconds")
        return self

    @property
    def heartbeat(self) -> float:
        """Seconds between two heartbeats."""
        return self.heartbeat_seconds if self.heartbeat_seconds is not None else self.lease_seconds / 6

    @property
    def uses_broker(self) -> bool:
        """Whether operations are handed over by messages."""
        return self.broker_url is not None

    @property
    def about(self) -> dict[str, str]:
        """What a service says at its start of the database and the broker it uses; no passwords."""
        broker = _without_secrets(self.broker_url.get_secret_value()) if self.broker_url else "none"
        return {"database": _without_secrets(self.database), "broker": broker}

    @property
    def database(self) -> str:
        """The database URL, with its password: for connecting, never for showing."""
        if self.database_url and self.database_url.get_secret_value():
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.working_directory / 'operations.sqlite'}"


def _without_secrets(url: str) -> str:
    """A URL without user, password and query; only its scheme when the password cannot be told from the rest."""
    scheme, _, rest = url.partition("://")
    shown = rest.partition("?")[0]
    if "@" in rest and "@" not in shown:
        return f"{scheme}://"
    return f"{scheme}://{shown.rpartition('@')[2]}"


def _explain(error: ValidationError) -> str:
    """One line for each setting that was refused. Never shows the value: it may be a secret."""
    lines = []
    for item in error.errors(include_input=False, include_url=False):
        name = str(item["loc"][0]) if item["loc"] else ""
        what = f"setting '{name}' ({PREFIX}{name.upper()})" if name else "settings"
        lines.append(f"{what}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)


@functools.cache
def get() -> Settings:
    """The settings of this process, read once; raises `ConfigurationError` that names each bad setting."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(key for key in os.environ if key.startswith(PREFIX) and key not in known)
    if unknown:
        raise ConfigurationError(
            f"unknown setting in the environment: {', '.join(unknown)}",
            remedy="correct its name or unset it; docs/reference/settings.md lists all settings",
        )
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None
