"""Leases that forked children still read under do not end before them."""

from __future__ import annotations

import os
import select
import signal

import pytest

from zfast.sharing.descriptor import Descriptor
from zfast.sharing.forks import ForkGuard, n_forks


def descriptor(generation):
    return Descriptor(b"s" * 16, generation, 0, 1)


class Child:
    """A forked process that lives until it is told to end."""

    def __init__(self, action=signal.pause):
        self.pid = os.fork()
        if self.pid == 0:
            action()
            os._exit(0)

    def end(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def ended():
    return []


@pytest.fixture
def guard(ended):
    return ForkGuard(lambda: True, ended.append)


def test_without_a_fork_a_lease_ends_at_once(guard, ended):
    guard.end(descriptor(1), n_forks())
    assert ended == [descriptor(1)]


def test_a_lease_from_before_a_fork_ends_with_the_child(guard, ended):
    born = n_forks()
    child = Child()
    guard.end(descriptor(1), born)
    guard.look()
    assert ended == []
    child.end()
    assert select.select(guard.fds, [], [], 5)[0]
    guard.look()
    assert ended == [descriptor(1)]
    assert guard.fds == []


def test_a_lease_from_after_a_fork_ends_at_once(guard, ended):
    child = Child()
    guard.end(descriptor(1), n_forks())
    assert ended == [descriptor(1)]
    child.end()


def test_of_two_children_both_must_be_gone(guard, ended):
    born = n_forks()
    first, second = Child(), Child()
    guard.end(descriptor(1), born)
    first.end()
    guard.look()
    assert ended == []
    second.end()
    guard.look()
    assert ended == [descriptor(1)]


def test_a_grandchild_counts(guard, ended):
    born = n_forks()
    read_end, write_end = os.pipe()

    def leave_a_grandchild():
        if os.fork() == 0:
            os.close(write_end)
            os.read(read_end, 1)
        os._exit(0)

    child = Child(leave_a_grandchild)
    os.waitpid(child.pid, 0)
    guard.end(descriptor(1), born)
    guard.look()
    assert ended == []
    os.close(write_end)
    assert select.select(guard.fds, [], [], 5)[0]
    guard.look()
    assert ended == [descriptor(1)]
    os.close(read_end)


def test_a_child_that_runs_another_program_reads_no_more(guard, ended):
    born = n_forks()
    pid = os.fork()
    if pid == 0:
        os.execv("/bin/sleep", ["sleep", "60"])
    assert select.select(guard.fds, [], [], 5)[0]
    guard.end(descriptor(1), born)
    assert ended == [descriptor(1)]
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def test_a_process_without_leases_makes_no_pipes(ended):
    guard = ForkGuard(lambda: False, ended.append)
    child = Child()
    assert guard.fds == []
    child.end()


def test_when_no_pipe_can_be_made_the_lease_never_ends(guard, ended, monkeypatch):
    born = n_forks()
    with monkeypatch.context() as patch:

        def refuse():
            raise OSError(24, "Too many open files")

        patch.setattr("zfast.sharing.forks.os.pipe", refuse)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
    os.waitpid(pid, 0)
    guard.end(descriptor(1), born)
    guard.look()
    assert ended == []


def test_pipes_are_closed_with_the_guard(ended):
    guard = ForkGuard(lambda: True, ended.append)
    child = Child()
    (fd,) = guard.fds
    del guard
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    child.end()
