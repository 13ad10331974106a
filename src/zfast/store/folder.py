"""The store in a folder: one file an object, written beside and renamed, read by mapping it.

New objects are written to ``<basepath>/.zfast/`` under a random name and renamed into place, so
that nobody ever sees a part of one. What dead writers left there is swept away by the next.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from zfast.codec import Payload
from zfast.errors import ConfigError
from zfast.store import leases
from zfast.store.compression import Codec, check_codec, compress
from zfast.store.files import failure, read_file, remove_unlocked, replace_file, sync_folder
from zfast.store.format import NO_TOKEN, StoredObject, build, parse
from zfast.store.heads import Content, read_content
from zfast.store.walk import OnUnread, fail, files_below

Durability = Literal["process", "power"]

#: Folder below the basepath for files that are being written, and for leases.
TEMPORARY_FOLDER = ".zfast"
SWEEP_INTERVAL_S = 60.0
MAX_NAME_NBYTES = 255
MAX_PATH_NBYTES = 4095


class Entry(NamedTuple):
    """A stored object from outside.

    Attributes:
        key: Its key.
        nbytes: Length of its file.
        modified_s: When it was written, seconds since 1970.
        used_s: When it was read or written last, as well as the file system tells: most note the
            first reading after a write, and then one a day.
        identity: Inode, length and time of writing: another under the same key differs in it.
    """

    key: str
    nbytes: int
    modified_s: float
    used_s: float
    identity: tuple[int, int, int]

    @classmethod
    def of(cls, key: str, status: os.stat_result) -> Entry:
        """What a file's status tells."""
        return cls(
            key,
            status.st_size,
            status.st_mtime,
            max(status.st_mtime, status.st_atime),
            (status.st_ino, status.st_size, status.st_mtime_ns),
        )


class FolderStore:
    """Objects in a folder of this host, or of a file system that several hosts mount.

    What a process has put, found or got is held for it (see `zfast.store.leases`) until it ends:
    nobody's collection removes it before.

    Args:
        basepath: The folder; made with mode 0700 when the first object is written.
        durability: "process": an object survives the death of its writer. "power": it is also on
            the disk before `put` returns.
        compression: "zstd" or "lz4": buffers that shrink by it are stored so, the others and all
            small ones as they are. None: every buffer is stored as it is, and can be mapped.

    Raises:
        ConfigError: The compression is unknown, or its library is not installed.
    """

    def __init__(
        self,
        basepath: str,
        *,
        durability: Durability = "process",
        compression: Codec | None = None,
    ) -> None:
        """Take a folder; nothing is made or read yet."""
        if compression is not None:
            check_codec(compression)
        self.basepath = os.path.realpath(os.path.expanduser(basepath))
        self.durability = durability
        self.compression = compression
        self._compress = partial(compress, compression) if compression is not None else None
        self._temporary_folder = os.path.join(self.basepath, TEMPORARY_FOLDER)
        self._on_disk: set[str] = set()
        self._next_sweep = 0.0

    @property
    def leases(self) -> leases.Leases:
        """What live processes hold in this store."""
        return leases.of(self._temporary_folder)

    def path_of(self, key: str) -> str:
        """Return the file of a key: below the basepath, always.

        Args:
            key: A relative path, or an absolute one below the basepath.

        Raises:
            ConfigError: The key leads out of the basepath or cannot be a file's name.
        """
        parts = PurePosixPath(key).parts
        if parts and parts[0].startswith("/"):
            base = PurePosixPath(self.basepath).parts
            if parts[: len(base)] != base:
                raise ConfigError(
                    f"the key {_shown(key)} is outside of the store {self.basepath}",
                    hint="give a relative key, or the storage that it belongs to",
                )
            parts = parts[len(base) :]
        if not parts:
            raise ConfigError(f"the key {key!r} names no object", hint="a key is a relative path")
        if ".." in parts or parts[0] == TEMPORARY_FOLDER or "\0" in key:
            raise ConfigError(
                f"the key {_shown(key)} is not allowed",
                hint=f"a key has no '..', no NUL and does not begin with {TEMPORARY_FOLDER!r}",
            )
        path = os.path.join(self.basepath, *parts)
        try:
            longest = max(len(os.fsencode(part)) for part in parts)
            nbytes = len(os.fsencode(path))
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the key {_shown(key)} cannot be a file's name: {error}",
                hint="a key is text without lone surrogates",
            ) from error
        if longest > MAX_NAME_NBYTES:
            raise ConfigError(
                f"the key {_shown(key)} has a part longer than {MAX_NAME_NBYTES} bytes",
                hint="shorten it, or divide it by slashes",
            )
        if nbytes > MAX_PATH_NBYTES:
            raise ConfigError(
                f"the key {_shown(key)} makes a path longer than {MAX_PATH_NBYTES} bytes",
                hint="shorten it, or give the storage a shorter basepath",
            )
        return path

    def put(
        self,
        key: str,
        content: bytes | memoryview,
        payload: Payload | None = None,
        token: bytes = NO_TOKEN,
    ) -> None:
        """Store one object under a key, whole or not at all, in place of an older one.

        Content and buffers are written from where they are. They may be changed again as soon as
        this returns.

        Raises:
            StoreError: The folder cannot be written; nothing is left behind.
            ConfigError: The key is not allowed.
        """
        path = self.path_of(key)
        parts = build(content, payload, token, self._compress)
        try:
            self._sweep_sometimes()
            self._make_folder(os.path.dirname(path))
            self._make_folder(self._temporary_folder)
            self._hold(path)
            replace_file(path, parts, self._temporary_folder, durable=self.durability == "power")
        except OSError as error:
            raise failure("cannot write", path, error) from error

    def get(self, key: str) -> StoredObject:
        """Open the object under a key. It stays readable when it is overwritten or deleted.

        Raises:
            KeyNotFoundError: There is none.
            ObjectCorruptError: What is there is not a whole object.
            StoreError: It cannot be read.
        """
        path = self.path_of(key)
        self._hold(path)
        return open_object(path)

    def get_content(self, key: str) -> Content:
        """Read what is stored beside the value under a key; of the value, no buffer is read.

        Raises:
            KeyNotFoundError: There is none.
            ObjectCorruptError: What is there is not an object, or its head is damaged.
            StoreError: It cannot be read.
        """
        path = self.path_of(key)
        self._hold(path)
        return read_content(path)

    def exists(self, key: str) -> bool:
        """Say whether there is an object under a key, without reading it."""
        path = self.path_of(key)
        if not os.path.isfile(path):
            return False
        self._hold(path)
        return os.path.isfile(path)

    def delete(self, key: str) -> None:
        """Remove the object under a key. Readers that have it open keep it.

        Raises:
            KeyNotFoundError: There is none.
            StoreError: It cannot be removed.
        """
        path = self.path_of(key)
        try:
            os.unlink(path)
        except OSError as error:
            raise failure("cannot delete", path, error) from error

    def list(self) -> Iterator[str]:
        """Name every key, folder by folder.

        Raises:
            StoreError: One cannot be looked at.
        """
        for entry in self.scan():
            yield entry.key

    def scan(self, on_unread: OnUnread = fail) -> Iterator[Entry]:
        """Look at every object from outside, folder by folder; nothing is opened.

        Args:
            on_unread: What to do about a folder or an object below that cannot be looked at.

        Raises:
            StoreError: The store cannot be listed; or what `on_unread` raises.
        """
        found = files_below(self.basepath, without=TEMPORARY_FOLDER, on_unread=on_unread)
        return (Entry.of(key, status) for key, status in found)

    def sweep(self, *, dry_run: bool = False) -> int:
        """Remove what dead processes left: files half written, and leases. Returns how many."""
        self._next_sweep = time.monotonic() + SWEEP_INTERVAL_S
        try:
            with os.scandir(self._temporary_folder) as found:
                paths = [each.path for each in found if not each.is_dir(follow_symlinks=False)]
        except OSError:
            return 0
        n_files = sum(remove_unlocked(path, dry_run=dry_run) for path in paths)
        return n_files + self.leases.sweep(dry_run=dry_run)

    def _sweep_sometimes(self) -> None:
        if time.monotonic() >= self._next_sweep:
            self.sweep()

    def _hold(self, path: str) -> None:
        self.leases.hold(path[len(self.basepath) + 1 :])

    def _make_folder(self, path: str, *, again: bool = False) -> None:
        # os.makedirs gives its mode to the last folder only.
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if self.durability == "process" or path in self._on_disk:
                return
            # Whoever made it may have died before it was on the disk.
            if path != self.basepath:
                self._make_folder(os.path.dirname(path))
        except FileNotFoundError:
            if again:
                raise  # some file systems, such as /proc, say so of what they will not make
            if not os.path.isdir(os.path.dirname(path)):  # else another process has made it by now
                self._make_folder(os.path.dirname(path))
            self._make_folder(path, again=True)
            return
        if self.durability == "power":
            sync_folder(os.path.dirname(path))
            self._on_disk.add(path)


def open_object(path: str) -> StoredObject:
    """Open the object in a file.

    Large ones are mapped privately: their buffers are read when they are touched, and writing to
    them changes this process's pages alone.

    Raises:
        KeyNotFoundError: There is no such file.
        ObjectCorruptError: It is not a whole object.
        StoreError: It cannot be read.
    """
    return parse(read_file(path), name=path)


def _shown(key: str) -> str:
    return repr(key) if len(key) <= 200 else f"{key[:80]!r}…"
