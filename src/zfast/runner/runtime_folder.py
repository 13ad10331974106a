"""The private folder of one hub or foreman, with its socket, and the hubs of this user."""

from __future__ import annotations

from pathlib import Path

from zfast.addresses import runtime_root
from zfast.owned_folder import OwnedFolder, owned_folders, sweep

HUB = "zfast"
FOREMAN = "zfast-worker"
_SOCKET_NAME = "hub.sock"


class RuntimeFolder(OwnedFolder):
    """A hub's or a foreman's, below ``$XDG_RUNTIME_DIR`` or the system's temporary folder.

    Those of dead ones are removed by the next one to be made; workers remove their driver's at
    once.

    Args:
        role: ``HUB`` or ``FOREMAN``.

    Raises:
        ConfigError: No folder can be made; the message says where and why.
    """

    def __init__(self, role: str) -> None:
        root = runtime_root()
        for each in (HUB, FOREMAN):
            sweep(root, each)
        super().__init__(root, role)

    @property
    def endpoint(self) -> str:
        """What the workers of its owner connect to, in this folder."""
        return f"ipc://{self.path}/{_SOCKET_NAME}"


def hub_sockets() -> list[Path]:
    """The sockets of this user's hubs on this host, the newest last."""
    found: list[tuple[float, Path]] = []
    for folder in owned_folders(runtime_root(), HUB):
        path = folder / _SOCKET_NAME
        try:
            found.append((path.lstat().st_mtime, path))
        except OSError:
            continue
    return [path for _, path in sorted(found)]
