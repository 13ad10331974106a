"""Where the system or a setting has a limit: the runner goes on, or says at once what is wrong."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
import time

import cloudpickle
import psutil
import pytest

from hub_jobs import hang_once, no_descriptors, settled, wait_for_file
from zfast.errors import ConfigError, WorkerError, WorkerStartError
from zfast.runner.job import JobFailedError
from zfast.runner.policy import Policy
from zfast.runner.vitals import Vitals
from zfast.sharing import exchange
from zfast.sharing.descriptor import Descriptor
from zfast.sharing.segments import Lease, OwnSegment

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux only")


def test_the_answer_to_a_request_that_was_interrupted_is_not_taken_for_the_next(tmp_path):
    path = str(tmp_path / "s")
    asked, interrupted = threading.Event(), threading.Event()

    def answer(connection, segment_id):
        with open(tmp_path / segment_id.decode().strip(), "wb+") as file:
            file.write(segment_id)
            file.flush()
            record = exchange._RECORD.pack(b"ZFSG", exchange.Kind.YES, segment_id, 16)
            socket.send_fds(connection, [record], [file.fileno()])

    def serve(listener):
        late, _ = listener.accept()
        late.recv(64)
        asked.set()
        assert interrupted.wait(10)
        prompt, _ = listener.accept()  # who was not answered comes anew
        try:
            answer(late, b"A" * 16)
        except OSError:
            pass
        prompt.recv(64)
        answer(prompt, b"B" * 16)
        late.close()
        prompt.close()

    def interrupt(_, __):
        raise InterruptedTaskError

    class InterruptedTaskError(Exception):
        pass

    def signal_when_asked():
        assert asked.wait(10)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            threads = [
                threading.Thread(target=serve, args=(listener,)),
                threading.Thread(target=signal_when_asked),
            ]
            for thread in threads:
                thread.start()
            client = exchange.SegmentClient(path)
            with pytest.raises(InterruptedTaskError):
                client.fetch(b"A" * 16)
            interrupted.set()
            fd, nbytes = client.fetch(b"B" * 16)
            assert os.pread(fd, nbytes, 0) == b"B" * 16
            os.close(fd)
            client.close()
            for thread in threads:
                thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_job_that_comes_back_when_no_worker_can_be_had_fails(start_hub, journal, tmp_path):
    def refuse(path):
        if os.path.exists(path):
            raise RuntimeError("no licence")

    broken = str(tmp_path / "broken")
    jobs = start_hub(
        max_workers=1,
        spares=0,
        max_tasks_per_worker=1,
        initializer=cloudpickle.dumps((refuse, (broken,))),
    )
    first = jobs.submit(hang_once, (journal, "first"))
    pid = journal.wait_for("first", "begin")
    open(broken, "w").close()
    with pytest.raises(WorkerStartError):
        jobs.run(lambda *_: None)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerError):
        jobs.value(first)
    closing = threading.Thread(target=jobs.hub.close)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()


def test_a_shortage_of_descriptors_while_workers_are_looked_at_fails_no_job(
    start_hub, journal, tmp_path, monkeypatch
):
    jobs = start_hub(max_workers=1, spares=0, lease_s=0.4)
    gate = tmp_path / "gate"
    running = jobs.submit(wait_for_file, (journal, "long", gate))
    journal.wait_for("long", "begin")
    looked = threading.Event()

    def status(_):
        looked.set()
        no_descriptors()

    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "status", status)
        assert looked.wait(10)
    gate.touch()
    assert jobs.value(running) == "long"


def test_a_process_that_cannot_be_looked_at_is_not_judged(monkeypatch):
    monkeypatch.setattr(psutil, "Process", no_descriptors)
    vitals = Vitals(os.getpid(), lambda: 0)
    vitals.look()
    assert not vitals.is_overdue


def test_a_worker_larger_than_its_limit_from_the_start_still_works(start_hub):
    def grow():
        import builtins
        import time

        builtins.kept = bytes(300 << 20) + b"x"
        time.sleep(1.5)  # it is looked at meanwhile

    jobs = start_hub(
        max_workers=1,
        spares=0,
        max_worker_nbytes=200 << 20,
        initializer=cloudpickle.dumps((grow, ())),
    )
    assert jobs.run(lambda *_: "done") == "done"


@pytest.mark.parametrize("lease_s", [float("inf"), float("nan"), 1e18, 0])
def test_a_lease_has_an_end(lease_s):
    with pytest.raises(ConfigError, match="lease_s"):
        Policy(1, lease_s=lease_s)


def test_what_idles_for_ever_is_fine(start_hub):
    jobs = start_hub(max_workers=1, idle_timeout_s=1e18)
    assert jobs.run(lambda *_: 1) == 1


def test_an_error_with_text_that_no_encoding_has_is_told_at_once(start_hub, journal):
    class Unsendable:
        def __reduce__(self):
            raise ValueError("a file named \udcff")

    def work(argument, _):
        argument.note("k", "begin")
        return Unsendable()

    jobs = start_hub(max_workers=1, spares=0)
    with pytest.raises(JobFailedError, match="named"):
        jobs.run(work, journal)
    assert len(journal.lines("k", "begin")) == 1


def test_memory_is_found_while_other_threads_read_it():
    segment = OwnSegment(0)
    leases = [Lease(Descriptor(b"s" * 16, n, 64 * n, 64), segment, None) for n in range(2000)]
    segment._address = 0
    for lease in leases:
        segment._note(lease)
    ended = threading.Event()

    def read_on():
        while not ended.is_set():
            segment._note(Lease(Descriptor(b"s" * 16, 1, 0, 64), segment, None))

    reader = threading.Thread(target=read_on)
    reader.start()
    try:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            assert segment.find(64 * 1999, 64) is not None
    finally:
        ended.set()
        reader.join()
    del leases, lease
    settled(lambda: not segment._leases)


def test_a_long_command_line_is_no_hindrance(start_hub, monkeypatch):
    arguments = ["flow.py"] + ["y" * 100] * 2000
    monkeypatch.setattr(sys, "argv", arguments)
    jobs = start_hub(max_workers=1, spares=0)

    def command_line(*_):
        import sys

        return sys.argv

    assert jobs.run(command_line) == arguments


def test_workers_are_watched_where_the_kernel_has_no_pidfd(start_hub, journal, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    jobs = start_hub(max_workers=1, spares=0)
    outcome = jobs.submit(hang_once, (journal, "k"))
    os.kill(journal.wait_for("k", "begin"), signal.SIGKILL)
    assert jobs.value(outcome) == 2
