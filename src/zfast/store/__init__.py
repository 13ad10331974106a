"""Where results are kept: objects under keys, behind one small interface."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from zfast.codec import Payload
from zfast.store.bounded import BoundedStore
from zfast.store.folder import FolderStore
from zfast.store.format import NO_TOKEN, StoredObject

__all__ = ["BoundedStore", "FolderStore", "ObjectStore", "StoredObject"]


class ObjectStore(Protocol):
    """What a store of results can do. Every method raises `zfast.errors.StoreError`."""

    def put(
        self,
        key: str,
        content: bytes | memoryview,
        payload: Payload | None = None,
        token: bytes = NO_TOKEN,
    ) -> None:
        """Store one object under a key, whole or not at all, in place of an older one."""

    def get(self, key: str) -> StoredObject:
        """Open the object under a key. It stays readable when it is overwritten or deleted."""

    def exists(self, key: str) -> bool:
        """Say whether there is an object under a key, without reading it."""

    def delete(self, key: str) -> None:
        """Remove the object under a key."""

    def list(self) -> Iterator[str]:
        """Name every key."""
