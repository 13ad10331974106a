"""The private folder of one hub, with its socket, and the hubs of this user."""

from __future__ import annotations

from pathlib import Path

from zfast.addresses import runtime_root
from zfast.owned_folder import OwnedFolder, owned_folders, sweep

_NAME = "zfast"
_SOCKET_NAME = "hub.sock"


class RuntimeFolder(OwnedFolder):
    """A hub's folder, below ``$XDG_RUNTIME_DIR`` or the system's temporary folder.

    Folders of dead hubs are removed by the next one to be made; workers remove their driver's at
    once.

    Raises:
        ConfigError: No folder can be made; the message says where and why.
    """

    def __init__(self) -> None:
        root = runtime_root()
        sweep(root, _NAME)
        super().__init__(root, _NAME)

    @property
    def endpoint(self) -> str:
        """The hub's endpoint in this folder."""
        return f"ipc://{self.path}/{_SOCKET_NAME}"


def hub_sockets() -> list[Path]:
    """The sockets of this user's hubs on this host, the newest last."""
    found: list[tuple[float, Path]] = []
    for folder in owned_folders(runtime_root(), _NAME):
        path = folder / _SOCKET_NAME
        try:
            found.append((path.lstat().st_mtime, path))
        except OSError:
            continue
    return [path for _, path in sorted(found)]
