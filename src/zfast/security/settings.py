"""Where this process finds keys: ``ZFAST_*`` variables that name files, folders or secrets."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

from zfast.errors import ConfigError
from zfast.security.held_secrets import take_secrets


class SecuritySettings(BaseSettings):
    """Security settings, each from the variable ``ZFAST_`` and its name; an empty one is unset.

    Attributes:
        keys: The key folder; ``~/.config/zfast/keys`` below ``XDG_CONFIG_HOME`` by default.
        environment: Whose keys, and which of the policy's environments.
        server_secret_key_file, client_secret_key_file: A mounted secret: Z85 alone.
        server_public_keys: Keys that servers may have, by comma, when this process connects.
        server_public_keys_file: The same in a file, one a line.
        authorized_folder: Mounted ``NAME.pub`` files instead of the key folder's.
        policy_file: Instead of the key folder's.
        token_file: Holds the bearer token; read anew whenever one is needed.
    """

    model_config = SettingsConfigDict(env_prefix="ZFAST_", env_ignore_empty=True, extra="ignore")

    keys: Path | None = None
    environment: str = "default"
    server_secret_key_file: Path | None = None
    client_secret_key_file: Path | None = None
    server_public_keys: str = ""
    server_public_keys_file: Path | None = None
    authorized_folder: Path | None = None
    policy_file: Path | None = None
    token_file: Path | None = None

    @property
    def key_folder(self) -> Path:
        """The key folder, whether it is there or not."""
        return self.keys if self.keys is not None else default_key_folder()


def load_settings() -> SecuritySettings:
    """The settings of this process's environment.

    Raises:
        ConfigError: One is malformed.
    """
    take_secrets()
    try:
        return SecuritySettings()
    except ValueError as error:
        raise ConfigError(f"a ZFAST_ variable is malformed: {error}") from error


def default_key_folder() -> Path:
    """Where the key folder is when nothing is said."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "zfast" / "keys"
