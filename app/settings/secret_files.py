"""Secrets in files: `NAME_FILE` names the file that contains the value of the variable `NAME`.

A container gets a secret as a file, since everyone who may inspect it reads its environment.
"""

import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsError
from pydantic_settings.sources import EnvSettingsSource

from trainers.runtime.redaction import add_secrets

SUFFIX = "_FILE"
# Settings that contain keys within their JSON.
STRUCTURED_SECRETS = ("evaluation_endpoints",)
# Variables that clients of other services read from the environment.
FOREIGN_VARIABLES = (
    "HF_TOKEN", "OPENAI_API_KEY",
    "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY",
    "AWS_SECRET_ACCESS_KEY", "LAMBDA_API_KEY",
)  # fmt: skip

# A runtime of containers mounts secrets here, for the processes of one container.
CONTAINER_SECRETS = Path("/run/secrets")

logger = logging.getLogger(__name__)
_reported: set[Path] = set()


class SecretFileUnusable(SettingsError):
    """The file of a secret cannot be read, or the secret is also a variable."""


class SecretFiles(PydanticBaseSettingsSource):
    """The source of the secrets that the environment or `.env` names as files."""

    def __init__(self, settings: type[BaseSettings], *named_by: PydanticBaseSettingsSource) -> None:
        super().__init__(settings)
        self._variables: dict[str, str | None] = {}
        for source in reversed(named_by):
            assert isinstance(source, EnvSettingsSource)
            self._variables |= source.env_vars

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the value of a setting from its file; None if no file is named."""
        is_structured = field_name in STRUCTURED_SECRETS
        # The encryption key has a setting for its file, with a default.
        is_secret = (
            field.annotation is SecretStr and f"{field_name}_file" not in self.settings_cls.model_fields
        )
        name = f"{self.config.get('env_prefix', '')}{field_name}".lower()
        value = None
        if is_secret or is_structured:
            value = read_secret_file(name, self._variables, is_structured=is_structured)
        alias = field.validation_alias
        key = str(alias.choices[0]) if isinstance(alias, AliasChoices) else field_name
        return value, key, is_structured

    def __call__(self) -> dict[str, Any]:
        """Return the values of all settings that are in files."""
        found = {}
        for name, field in self.settings_cls.model_fields.items():
            value, key, is_structured = self.get_field_value(field, name)
            if value is not None:
                found[key] = self.decode_complex_value(name, field, value) if is_structured else value
        return found


def load_secret_variables() -> None:
    """Set this process's variables of other services' secrets whose files are named."""
    for name in FOREIGN_VARIABLES:
        if (value := read_secret_file(name, os.environ)) is not None:
            # `docker inspect` and /proc/PID/environ show the environment at the start, without this.
            os.environ[name] = value


def read_secret_file(
    name: str, variables: Mapping[str, str | None], *, is_structured: bool = False
) -> str | None:
    """Return the content of the file that `name` + SUFFIX names, without the newline.

    Without a file, or with an empty one, it is None, as for an empty variable. JSON may have several lines.

    Raises:
        SecretFileUnusable: The file cannot be read, has several lines, or the variable has another value.
    """
    suffix = SUFFIX if name.isupper() else SUFFIX.lower()
    path = variables.get(name + suffix)
    if not path:
        return None
    named = f"{name}{suffix}".upper()
    try:
        value = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SecretFileUnusable(f"{named} is {path}, which cannot be read: {error}") from error
    if not value:
        return None
    warn_if_readable(named, Path(path))
    if not is_structured and (count := len(value.splitlines())) > 1:
        raise SecretFileUnusable(
            f"{named} is {path}, which has {count} lines. A secret is one line: remove the others, such as "
            "comments and the names of variables"
        )
    if variables.get(name) not in (None, "", value):
        raise SecretFileUnusable(f"{named} and {name.upper()} are both set: remove one of them")
    add_secrets([value])
    return value


def warn_if_readable(named: str, path: Path) -> None:
    """Log once if other users of this machine can read the file of a secret."""
    found = path.resolve()
    if found in _reported or found.is_relative_to(CONTAINER_SECRETS):
        return
    try:
        is_open = bool(found.stat().st_mode & stat.S_IROTH)
        # Nobody else reaches a file in a folder that is closed to them.
        is_open = is_open and all(folder.stat().st_mode & stat.S_IXOTH for folder in found.parents)
    except OSError:
        return
    if is_open:
        _reported.add(found)
        logger.warning(
            "%s is %s, which every user of this machine can read. Close it: `chmod o-rwx %s`.",
            named, path, path,
        )  # fmt: skip
