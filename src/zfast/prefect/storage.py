"""The storage block "zfast-storage": results in a `zfast.store`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.filesystems import WritableFileSystem
from prefect.settings import PREFECT_API_URL, PREFECT_HOME
from pydantic import Field, field_validator, model_validator

from zfast.errors import ConfigError, TicketError
from zfast.prefect import internals, tickets
from zfast.prefect.run_leases import held_for_the_run
from zfast.prefect.tickets import Ticket
from zfast.store.bounded import BoundedStore
from zfast.store.compression import Codec
from zfast.store.files import not_found
from zfast.store.folder import Durability, FolderStore, open_object
from zfast.store.format import NO_TOKEN

PATH_VARIABLE = "ZFAST_STORAGE_PATH"
#: After the API could not be asked, results go without its help for so long.
RETRY_SAVE_S = 30.0
_RECORD = b'{"metadata":{"serializer":{"type":"zfast"}},"result":"%s"}'

_log = logging.getLogger("zfast.prefect")
_saving = threading.Lock()
_saved_ids: dict[tuple[str | None, str], UUID] = {}
_next_save = 0.0


def _after_fork() -> None:
    global _saving
    _saving = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def default_basepath() -> str:
    """Return where results go by default: $ZFAST_STORAGE_PATH, or a folder in Prefect's home."""
    return os.environ.get(PATH_VARIABLE) or str(Path(PREFECT_HOME.value()) / "zfast-results")


@lru_cache(maxsize=64)
def _folder(
    basepath: str, durability: Durability, compression: Codec | None, budget_nbytes: int | None
) -> FolderStore:
    if budget_nbytes is None:
        return FolderStore(basepath, durability=durability, compression=compression)
    return BoundedStore(
        basepath, budget_nbytes=budget_nbytes, durability=durability, compression=compression
    )


class ZfastStorage(WritableFileSystem):
    """Keeps results in a folder: one file each, written without a copy, read by mapping it.

    Works with any serializer; with "zfast" the payload is never turned into text. It need not be
    saved: the first run that stores a result saves it in the API under a name made from its
    fields, so that the result can be found from anywhere.

    Args:
        basepath: The folder. Default: $ZFAST_STORAGE_PATH, or `zfast-results` in Prefect's home.
        durability: "process": a result survives the death of its process. "power": it is on the
            disk before the run goes on.
        compression: "zstd" or "lz4": large buffers that shrink by it are stored so, and read by
            decompressing them. None: all are stored as they are, and mapped.
        budget_nbytes: What the results may take together; beyond it writers evict those that were
            used longest ago and that no live process uses. None: any.

    Example:
        ```python
        @task(result_storage=ZfastStorage(), result_serializer="zfast", persist_result=True)
        def load() -> pd.DataFrame: ...
        ```
    """

    _block_type_name = "Zfast Storage"
    _block_type_slug = "zfast-storage"
    _description = "Keeps results in a folder: written without a copy, read by mapping the file."

    basepath: str = Field(
        default_factory=default_basepath,
        validate_default=True,
        description="The folder that results are kept in.",
    )
    durability: Durability = Field(
        default="process",
        description="What a stored result survives: the death of its process, or a power cut.",
    )

    compression: Codec | None = Field(
        default=None,
        description="How large buffers are compressed where it pays.",
    )
    budget_nbytes: int | None = Field(
        default=None,
        ge=0,
        description="What the results may take together before the oldest are evicted, in bytes.",
    )

    @property
    def _store(self) -> FolderStore:
        return _folder(self.basepath, self.durability, self.compression, self.budget_nbytes)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        # Blocks take any argument. A misspelt one would be lost without a word.
        if isinstance(values, dict):
            known = {*cls.model_fields, "block_type_slug"}
            unknown = [key for key in values if key not in known and not key.startswith("_")]
            if unknown:
                raise ConfigError(f"ZfastStorage has no field {', '.join(sorted(unknown))}")
        return values

    @field_validator("basepath", mode="before")
    @classmethod
    def _normalise(cls, value: Any) -> Any:
        # Absolute from the start: other processes have other working folders and homes.
        if isinstance(value, (str, os.PathLike)):
            return os.path.realpath(os.path.expanduser(value))
        return value

    def __bool__(self) -> bool:
        """Say whether the block is saved in the API.

        `@task` and `@flow` refuse a storage that is true and not saved. This one is saved by the
        run, so it must pass unsaved.
        """
        return internals.block_id(self) is not None

    def write_path(self, path: str, content: bytes, _sync: bool | None = None) -> None:  # type: ignore[override]
        """Store content under a key, and the payload of the ticket in it, as one object.

        Raises:
            TicketError: The ticket's payload is not staged in this process.
            StoreError: The folder cannot be written; nothing is left behind.
            ConfigError: The key leads out of the basepath.
        """
        folder = self._store
        ticket = tickets.find(content)
        if ticket is None:
            with held_for_the_run(folder):
                folder.put(path, content)
            return
        if ticket.path is not None:
            # Content that was read from a store and is written to another: its payload goes along.
            payload = open_object(ticket.path).payload
            content = content.replace(bytes(ticket), bytes(Ticket(ticket.token)))
        else:
            payload = tickets.take(ticket)
        if payload is None:
            raise TicketError(
                f"cannot write {path}: its ticket {bytes(ticket).decode()} has no payload here",
                hint="a ticket is stored once, by the process that made it and within "
                f"{tickets.STAGED_MAX_AGE_S:.0f} s; run the task again",
            )
        with held_for_the_run(folder):
            folder.put(path, content, payload, ticket.token)

    def read_path(self, path: str, _sync: bool | None = None) -> bytes:  # type: ignore[override]
        """Return the content under a key, with the ticket in it located.

        A bare ticket comes as a record that names its serializer: a process that has not imported
        zfast took the result's metadata for those of an unknown one, yet resolves this one, as
        looking up the block imported zfast.

        Metadata that Prefect looks for, to see whether a result is there, are there only if the
        result is, too: it may have been evicted from a storage of its own.

        Raises:
            KeyNotFoundError: There is none.
            ObjectCorruptError: What is there is damaged.
            StoreError: It cannot be read.
            ConfigError: The key leads out of the basepath.
        """
        return self._read(path, internals.results_looked_for(self))

    def _read(self, path: str, results: object | None) -> bytes:
        folder = self._store
        with held_for_the_run(folder):
            content, token = folder.get_content(path)
        if token != NO_TOKEN:
            bare = bytes(Ticket(token))
            located = bytes(Ticket(token, folder.path_of(path)))
            if content == bare:
                return _RECORD % located
            return content.replace(bare, located)
        if isinstance(results, ZfastStorage):
            results._find_named(content)
        return content

    def _find_named(self, metadata: bytes) -> None:
        """Hold the result that metadata name; an error if it is not here."""
        key = json.loads(metadata)["storage_key"]
        folder = self._store
        with held_for_the_run(folder):
            if not folder.exists(key):
                raise not_found(folder.path_of(key))

    async def awrite_path(self, path: str, content: bytes) -> None:
        """Do what `write_path` does, on a thread."""
        await asyncio.to_thread(self.write_path, path, content)

    async def aread_path(self, path: str) -> bytes:
        """Do what `read_path` does, on a thread."""
        return await asyncio.to_thread(self._read, path, internals.results_looked_for(self))

    def _resolve_path(self, path: str) -> Path | None:
        """Say where a key is, for a block that is not saved: Prefect asks only then.

        In a run the block is saved now, and None says that keys are to be left as they are.
        Elsewhere, and when the API does not answer, results are found by their absolute path.
        """
        if not path:
            return Path(self.basepath)
        if internals.block_id(self) is None and (FlowRunContext.get() or TaskRunContext.get()):
            self._save_once()
        if internals.block_id(self) is not None:
            return None
        return Path(self._store.path_of(path))

    def _save_once(self) -> None:
        global _next_save
        fields = f"{self.basepath}\0{self.durability}"
        for option in (self.compression, self.budget_nbytes):
            if option is not None:
                fields += f"\0{option}"
        digest = hashlib.sha256(fields.encode()).hexdigest()
        name = f"zfast-{digest[:12]}"
        key = (PREFECT_API_URL.value(), name)
        with _saving:
            if key not in _saved_ids and time.monotonic() >= _next_save:
                try:
                    _saved_ids[key] = self._find_or_save(name)
                except Exception:
                    # The result matters more than who can find it.
                    _next_save = time.monotonic() + RETRY_SAVE_S
                    _log.warning("cannot save the storage block %s", name, exc_info=True)
            if key in _saved_ids:
                internals.mark_saved(self, _saved_ids[key], name)

    def _find_or_save(self, name: str) -> UUID:
        with get_client(sync_client=True) as client:
            try:
                return client.read_block_document_by_name(name, self.get_block_type_slug()).id
            except ObjectNotFound:
                pass
        try:
            return internals.save(self, name)
        except ObjectAlreadyExists:
            # Another process registered the type of the block at the same moment.
            return internals.save(self, name)
