"""This process's shared memory: its settings, its start, and NumPy's arrays in it.

The allocator itself is compiled (``zfast._arena``); most names here are its own. Nothing of it
exists before ``start``, which ``allocate``, ``copy_in``, ``prepare`` and ``share_memory`` call.
"""

from __future__ import annotations

import os
import tempfile
import threading
import warnings
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from zfast import _arena
from zfast._arena import ArenaStatistics as ArenaStatistics
from zfast._arena import Block as Block
from zfast._arena import Mapping as Mapping
from zfast._arena import Publication as Publication
from zfast._arena import Segment as Segment
from zfast._arena import SharedView as SharedView
from zfast._arena import extract as extract
from zfast._arena import is_sealed as is_sealed
from zfast._arena import own_view as own_view
from zfast._arena import owns as owns
from zfast._arena import publish as publish
from zfast._arena import released_segments as released_segments
from zfast._arena import remove_handler as remove_handler
from zfast._arena import segment as segment
from zfast._arena import settle_loans as settle_loans
from zfast._arena import statistics as statistics
from zfast._arena import trim as trim
from zfast._arena import unpublish as unpublish
from zfast.errors import ArenaError, ArenaOnDiskWarning, ConfigError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MIB = 1 << 20


def _number(name: str, default: int | None) -> int | None:
    """An environment variable's number of bytes."""
    text = os.environ.get(name)
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise ConfigError(
            f"{name}={text!r} is no number of bytes", hint=f"for example {name}=1073741824"
        ) from None


@dataclass(frozen=True)
class ArenaSettings:
    """How much shared memory a process takes, and of what kind.

    Attributes:
        cap_nbytes: The most, all segments together; None for half of the memory that the machine
            and the process's cgroup allow.
        retain_nbytes: How much empty memory is kept warm.
        threshold_nbytes: Smaller NumPy arrays are not put there.
        segment_nbytes: A segment's length; a larger block has one of its own.
        margin_nbytes: What a new segment must leave to others; None for a twentieth of the
            memory, at most 1 GiB.
        backing: ``"memfd"``, ``"shm"``, ``"disk"``, or None for the first that works here.
        shm_folder: Where unlinked files in shared memory are made.
        disk_folder: Where unlinked files on a disk are made.
    """

    cap_nbytes: int | None = None
    retain_nbytes: int = 1024 * _MIB
    threshold_nbytes: int = 128 * 1024
    segment_nbytes: int = 64 * _MIB
    margin_nbytes: int | None = None
    backing: str | None = None
    shm_folder: str = "/dev/shm"
    disk_folder: str = field(default_factory=tempfile.gettempdir)

    def __post_init__(self) -> None:
        for name in ("cap", "retain", "threshold", "segment", "margin"):
            value = getattr(self, f"{name}_nbytes")
            least = 0 if name in ("retain", "margin") else 1
            if value is not None and not least <= value < 1 << 47:
                raise ConfigError(f"{name}_nbytes={value} is not from {least} to 2**47")
        if self.backing not in (None, *_arena.BACKINGS):
            raise ConfigError(
                f"{self.backing!r} is no backing for an arena",
                hint=f"take one of {', '.join(_arena.BACKINGS)}",
            )

    @classmethod
    def from_environment(cls) -> ArenaSettings:
        """What ``ZFAST_ARENA_NBYTES``, ``ZFAST_ARENA_RETAIN_NBYTES``,
        ``ZFAST_ARENA_THRESHOLD_NBYTES`` and ``ZFAST_ARENA_BACKING`` say, and defaults.

        Raises:
            ConfigError: One of them says nothing that makes sense.
        """
        retain_nbytes = _number("ZFAST_ARENA_RETAIN_NBYTES", cls.retain_nbytes)
        threshold_nbytes = _number("ZFAST_ARENA_THRESHOLD_NBYTES", cls.threshold_nbytes)
        assert retain_nbytes is not None
        assert threshold_nbytes is not None
        return cls(
            cap_nbytes=_number("ZFAST_ARENA_NBYTES", None),
            retain_nbytes=retain_nbytes,
            threshold_nbytes=threshold_nbytes,
            backing=os.environ.get("ZFAST_ARENA_BACKING") or None,
        )


_lock = threading.RLock()
_settings: ArenaSettings | None = None
# A fork may come while another thread starts the arena.
os.register_at_fork(
    before=lambda: _lock.acquire(),
    after_in_parent=lambda: _lock.release(),
    after_in_child=lambda: _lock.release(),
)


def start(settings: ArenaSettings | None = None) -> ArenaSettings:
    """Start this process's arena, once.

    Args:
        settings: None for those of the environment or, if it is started, those it has.

    Returns:
        The settings it runs with, nothing left open.

    Raises:
        ConfigError: It runs with other settings, or the environment's make no sense.
        ArenaError: No shared memory can be had here, or this process is a fork of one that has
            an arena.
    """
    global _settings
    with _lock:
        if _settings is not None:
            if settings is not None and _complete(settings, _settings.backing) != _settings:
                raise ConfigError(
                    "the arena runs with other settings already",
                    hint="start it before its first use in this process",
                )
            return _settings
        chosen = _complete(settings or ArenaSettings.from_environment(), None)
        backing = _working_backing(chosen)
        chosen = _complete(chosen, backing)
        _arena.start(
            backing=backing,
            folder=_folder(chosen, backing),
            segment_nbytes=chosen.segment_nbytes,
            cap_nbytes=chosen.cap_nbytes or 0,
            retain_nbytes=chosen.retain_nbytes,
            margin_nbytes=chosen.margin_nbytes or 0,
        )
        _settings = chosen
    if backing == "disk":
        warnings.warn(
            f"shared memory lies in files in {chosen.disk_folder}: neither memfd nor "
            f"{chosen.shm_folder} can be used here",
            ArenaOnDiskWarning,
            stacklevel=2,
        )
    return chosen


def _complete(settings: ArenaSettings, backing: str | None) -> ArenaSettings:
    """The settings with nothing left open."""
    total_nbytes = _arena.read_memory().total_nbytes
    cap, margin = settings.cap_nbytes, settings.margin_nbytes
    return ArenaSettings(
        cap_nbytes=total_nbytes // 2 if cap is None else cap,
        retain_nbytes=settings.retain_nbytes,
        threshold_nbytes=settings.threshold_nbytes,
        segment_nbytes=settings.segment_nbytes,
        margin_nbytes=min(total_nbytes // 20, 1024 * _MIB) if margin is None else margin,
        backing=settings.backing or backing,
        shm_folder=settings.shm_folder,
        disk_folder=settings.disk_folder,
    )


def _folder(settings: ArenaSettings, backing: str) -> str:
    return {"memfd": "", "shm": settings.shm_folder, "disk": settings.disk_folder}[backing]


def _working_backing(settings: ArenaSettings) -> str:
    """The wanted backing, or the first, that makes, maps and seals memory here and now."""
    failures = []
    for backing in [settings.backing] if settings.backing else _arena.BACKINGS:
        # A folder must have room for one segment; memfds have no folder to be full.
        whole = min(settings.segment_nbytes, settings.cap_nbytes or 0)
        error = _arena.probe(
            backing, _folder(settings, backing), 4096 if backing == "memfd" else whole
        )
        if not error:
            return backing
        failures.append(f"{backing}: {os.strerror(error)}")
    raise ArenaError(
        "no shared memory can be had",
        detail=", ".join(failures),
        hint="give /dev/shm or the folder for temporary files (TMPDIR) more room",
    )


def allocate(nbytes: int) -> Block:
    """A block of uninitialised memory; see ``_arena.allocate``. Starts the arena."""
    start()
    return _arena.allocate(nbytes)


def copy_in(buffer: Buffer) -> Block:
    """A block with a copy of a buffer's bytes; see ``_arena.copy_in``. Starts the arena."""
    start()
    return _arena.copy_in(buffer)


def seal(address: int, nbytes: int) -> bool:
    """Vouch that nobody will write to a block of this arena any more; it can be published then.

    Args:
        address, nbytes: A range in the block.

    Returns:
        False if the range is not in one block of the arena, or a fork has made it private.
    """
    publication = publish(address, nbytes, exclusive=True)
    return publication is not None and unpublish(publication.generation)


def prepare(nbytes: int) -> None:
    """Make and fault in memory ahead, without the GIL; see ``_arena.prepare``. Starts the arena."""
    start()
    _arena.prepare(nbytes)


def install_handler() -> bool:
    """NumPy's large arrays from the arena, in this context; see ``_arena.install_handler``."""
    return _arena.install_handler(start().threshold_nbytes)


class Sharing:
    """NumPy's large arrays are born in shared memory, in one context, until ``stop``.

    As a context manager it stops at the end of the block.
    """

    def __init__(self) -> None:
        self._installed = install_handler()

    def stop(self) -> None:
        """Put NumPy's handler back, in the context that this is called in; once is enough."""
        if self._installed:
            remove_handler()
        self._installed = False

    def __enter__(self) -> Sharing:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def share_memory() -> Sharing:
    """Let NumPy make large arrays in memory that other processes can read without a copy.

    It reaches the current context and its copies: this thread, asyncio tasks that are made from
    here, ``asyncio.to_thread``. Other threads and executors do not see it; call it there too. It
    is also faster than the heap: memory is reused while it is warm.

    Returns:
        What undoes it, by ``stop`` or as a context manager. Arrays may outlive that.

    Raises:
        ArenaError: No shared memory can be had here.

    Example:
        >>> with share_memory():
        ...     array = np.ones(1_000_000)
    """
    return Sharing()
