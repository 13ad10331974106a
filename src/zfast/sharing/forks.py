"""Forked children, which go on reading what their parent held when they were made."""

from __future__ import annotations

import os
import select
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

from zfast.sharing.descriptor import Descriptor

#: Stands for a pipe that could not be made: those children are taken to live for ever.
_NO_FD = -1


@dataclass(eq=False, slots=True)
class _Children:
    """The children of one fork: the other end of the pipe is open as long as one of them lives."""

    number: int
    fd: int
    waiting: list[tuple[Descriptor, int]] = field(default_factory=list)

    @property
    def gone(self) -> bool:
        if self.fd == _NO_FD:
            return False
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(0))


class ForkGuard:
    """Holds back the ends of leases that a forked child may still be reading under.

    A child has its parent's mappings, but no lease of its own: nobody would know when it is done.
    So at each fork the child gets one end of a pipe, which closes when it, and every child of its
    own, has ended or run another program; until then no lease ends that its parent had.

    Args:
        has_leases: Whether this process holds any; without one a fork costs nothing.
        on_end: Where leases end that no child needs.

    Threads: any. ``os.fork``, and so ``multiprocessing``, is seen; a fork by C code is not.
    """

    def __init__(
        self, has_leases: Callable[[], bool], on_end: Callable[[Descriptor], None]
    ) -> None:
        self._has_leases = has_leases
        self._on_end = on_end
        self._children: list[_Children] = []
        # A lease may end, by the collector, in the midst of anything that this lock guards.
        self._lock = threading.RLock()
        _guards.add(self)

    def end(self, descriptor: Descriptor, born: int) -> None:
        """End a lease, now or when no child can read under it.

        Args:
            born: ``n_forks`` when the lease began.
        """
        if self._children:
            self.look()
            with self._lock:
                for children in self._children:
                    if children.number > born and not children.gone:
                        children.waiting.append((descriptor, born))
                        return
        self._on_end(descriptor)

    def look(self) -> None:
        """End what children held back that are gone by now."""
        with self._lock:
            gone = [children for children in self._children if children.gone]
            self._children = [children for children in self._children if children not in gone]
        for children in gone:
            os.close(children.fd)
            for descriptor, born in children.waiting:
                self.end(descriptor, born)

    @property
    def fds(self) -> list[int]:
        """Readable when ``look`` has something to do."""
        return [children.fd for children in list(self._children) if children.fd != _NO_FD]

    def _add(self, fd: int) -> None:
        if self._has_leases():
            with self._lock:
                self._children.append(_Children(n_forks(), os.dup(fd) if fd != _NO_FD else fd))

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self.__del__()

    def __del__(self) -> None:
        children, self._children = self._children, []
        for one in children:
            if one.fd != _NO_FD:
                os.close(one.fd)


class _Fork(threading.local):
    """The pipe of the fork that a thread is in."""

    pipe: tuple[int, int] | None = None


_guards: weakref.WeakSet[ForkGuard] = weakref.WeakSet()
_fork = _Fork()
_n_forks = 0


def n_forks() -> int:
    """How often this process has forked."""
    return _n_forks


def _before() -> None:
    _fork.pipe = None
    if any(guard._has_leases() for guard in list(_guards)):
        try:
            _fork.pipe = os.pipe()
        except OSError:
            _fork.pipe = (_NO_FD, _NO_FD)


def _in_parent() -> None:
    global _n_forks
    _n_forks += 1
    if _fork.pipe is not None:
        read_end, write_end = _fork.pipe
        for guard in list(_guards):
            guard._add(read_end)
        if read_end != _NO_FD:
            os.close(write_end)
            os.close(read_end)


def _in_child() -> None:
    for guard in list(_guards):
        guard._forget()
    # The write end stays open as long as this process lives.
    if _fork.pipe is not None and _fork.pipe[0] != _NO_FD:
        os.close(_fork.pipe[0])


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
