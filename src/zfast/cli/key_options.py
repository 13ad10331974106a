"""Options about keys that many verbs have, and how the key folder is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from zfast.cli.path_options import to_path

if TYPE_CHECKING:
    from zfast.security.key_folder import KeyFolder
    from zfast.security.settings import SecuritySettings

Environment = Annotated[str | None, Parameter(name=["--environment", "-e"], show_default=False)]
Folder = Annotated[Path | None, Parameter(show_default=False, converter=to_path)]
#: What names a key. One may begin with a hyphen, and so may its fingerprint.
KeyName = Annotated[str, Parameter(allow_leading_hyphen=True)]
Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def settings_of(folder: Path | None, environment: str | None) -> SecuritySettings:
    """This process's settings, with what the command line says in their place.

    Raises:
        ConfigError: A variable is malformed.
    """
    from zfast.security.settings import load_settings

    said = {"keys": folder, "environment": environment}
    return load_settings().model_copy(
        update={name: value for name, value in said.items() if value is not None}
    )


def open_keys(folder: Path | None, environment: str | None) -> tuple[KeyFolder, str]:
    """The key folder, and the environment that is meant."""
    from zfast.security.key_folder import KeyFolder

    settings = settings_of(folder, environment)
    return KeyFolder(settings.key_folder), settings.environment
