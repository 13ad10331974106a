"""After fork() neither process sees what the other does, whoever forked."""

from __future__ import annotations

import sys

import pytest

from arena_process import run_alone

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")

FORKS = {
    "os.fork": "fork = os.fork",
    "libc": "import ctypes; fork = ctypes.PyDLL(None).fork",
}


@pytest.mark.parametrize("fork", FORKS.values(), ids=FORKS)
def test_neither_sees_what_the_other_writes(fork):
    run_alone(
        f"""
        {fork}
        zfast.share_memory()
        a, b = np.arange(100_000), np.arange(100_000)
        sealed = np.arange(100_000)
        publication = arena.publish(address(sealed), sealed.nbytes, exclusive=True)
        parent_wrote, wake_child = os.pipe()
        child_wrote, wake_parent = os.pipe()
        """
        """
        def check():
            os.close(wake_child)
            assert os.read(parent_wrote, 1) == b"x"
            for array in (a, b, sealed):
                assert (array == np.arange(100_000)).all()
                array[:] = -2
            del array
            os.write(wake_parent, b"x")
            assert not arena.owns(address(np.ones(100_000)))
            a.resize(200_000, refcheck=False)
            assert (a[:100_000] == -2).all() and not arena.owns(address(a))
            try:
                arena.allocate(10)
            except ArenaFullError as error:
                assert "forked" in str(error)
            assert arena.publish(address(b), b.nbytes, exclusive=True) is None
            assert not arena.unpublish(publication.generation)
            globals().pop("b"), globals().pop("sealed")

        pid = fork()
        if pid == 0:
            status = 1
            try:
                check()
                status = 0
            finally:
                import traceback
                traceback.print_exc()
                os._exit(status)
        os.close(wake_parent)
        a[:] = -1
        os.write(wake_child, b"x")
        assert os.read(child_wrote, 1) == b"x"
        assert (a == -1).all()
        assert (b == np.arange(100_000)).all()
        segment = arena.segment(publication.segment_index)
        seen = arena.Mapping(segment.fd, segment.nbytes).view(publication.offset, sealed.nbytes, 0)
        assert (sealed == np.arange(100_000)).all()
        assert (np.frombuffer(seen, np.int64) == sealed).all()
        assert os.waitpid(pid, 0)[1] == 0
        assert arena.publish(address(a), a.nbytes, exclusive=True) is None, "private since the fork"
        again = arena.publish(address(sealed), sealed.nbytes, exclusive=False)
        assert again.generation != publication.generation
        """
    )


def test_memory_a_child_can_see_is_never_used_again():
    run_alone(
        """
        zfast.share_memory()
        arrays = [np.full(100_000, i) for i in range(20)]
        go, parent_is_done = os.pipe()

        def check():
            os.close(parent_is_done)
            os.read(go, 1)
            for i, array in enumerate(arrays):
                assert (array == i).all()

        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                check()
                status = 0
            finally:
                os._exit(status)
        os.close(go)
        segments = arena.statistics().n_segments
        assert arena.statistics().n_retired_segments == segments
        arrays = arrays[:1]
        others = [np.full(100_000, -1) for _ in range(60)]
        assert arena.publish(address(others[0]), 8, exclusive=True) is not None
        os.close(parent_is_done)
        assert os.waitpid(pid, 0)[1] == 0
        arrays.clear()
        assert arena.statistics().n_retired_segments == 0
        assert arena.statistics().retired_nbytes == 0
        """
    )


def test_empty_segments_stay_in_use():
    run_alone(
        """
        zfast.share_memory()
        arena.prepare(100 * MIB)
        before = arena.statistics()
        fds = len(os.listdir("/proc/self/fd"))

        def check():
            assert len(os.listdir("/proc/self/fd")) == fds - before.n_segments
            assert "zfast-arena" not in open("/proc/self/maps").read()

        in_child(check)
        array = np.ones(100_000)
        assert arena.owns(address(array))
        assert arena.statistics().n_segments_made == before.n_segments_made
        assert arena.statistics().n_retired_segments == 0
        """
    )


def test_published_blocks_survive_their_holder_and_a_fork():
    run_alone(
        """
        zfast.share_memory()
        array = np.arange(100_000)
        nbytes = array.nbytes
        publication = arena.publish(address(array), nbytes, exclusive=True)
        own = arena.own_view(publication.segment_index, publication.offset, nbytes, None)
        del array
        seen = np.frombuffer(own, np.int64)
        def check():
            assert (seen == np.arange(100_000)).all()
        in_child(check)
        assert arena.unpublish(publication.generation)
        assert not arena.unpublish(publication.generation)
        assert arena.statistics().mapped_nbytes == 0
        """
    )


def test_a_child_of_a_child():
    run_alone(
        """
        zfast.share_memory()
        array = np.arange(100_000)
        def grandchild():
            assert (array == 5).all()
            array[:] = 6
        def child():
            array[:] = 5
            in_child(grandchild)
            assert (array == 5).all()
        in_child(child)
        assert (array == np.arange(100_000)).all()
        """
    )


def test_multiprocessing_by_fork():
    run_alone(
        """
        import multiprocessing, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        zfast.share_memory()
        array = np.arange(100_000)

        def work(i):
            array[i] = -1
            return int(array.sum()), arena.owns(address(np.ones(100_000)))

        expected = [int(array.sum()) - i - 1 for i in range(4)]
        with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
            results = [pool.apply(work, (i,)) for i in range(4)]
        assert results == [(one, False) for one in expected]
        assert (array == np.arange(100_000)).all()
        """
    )


def test_forks_while_threads_allocate():
    run_alone(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        stop = threading.Event()
        failures = []

        def churn(seed):
            zfast.share_memory()
            rng = np.random.default_rng(seed)
            try:
                while not stop.is_set():
                    n = int(rng.integers(20_000, 400_000))
                    array = np.full(n, seed)
                    copy = array + 1
                    assert (copy == seed + 1).all() and (array == seed).all()
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=churn, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        zfast.share_memory()
        mine = np.arange(100_000)

        def check():
            assert (mine == np.arange(100_000)).all()
            mine[:] = 0
            np.ones(100_000).sum()

        for _ in range(25):
            in_child(check)
            assert (mine == np.arange(100_000)).all()
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        del mine
        arena.trim()
        assert arena.statistics().mapped_nbytes == 0
        """
    )


def test_a_process_forked_before_the_start_has_its_own_arena():
    run_alone(
        """
        def check():
            zfast.share_memory()
            assert arena.owns(address(np.ones(100_000)))
        in_child(check)
        zfast.share_memory()
        assert arena.owns(address(np.ones(100_000)))
        def too_late():
            array = np.ones(100_000)
            assert not arena.owns(address(array))
            zfast.share_memory()
            assert not arena.owns(address(np.ones(100_000)))
        in_child(too_late)
        """
    )


def test_subprocesses_do_not_retire_anything():
    run_alone(
        """
        import subprocess
        zfast.share_memory()
        array = np.ones(100_000)
        subprocess.run([sys.executable, "-c", ""], check=True)
        os.system("true")
        assert arena.statistics().n_retired_segments == 0
        assert arena.publish(address(array), array.nbytes, exclusive=True) is not None
        """
    )


def test_a_loan_lasts_until_the_forked_readers_are_gone():
    """A child goes on reading a peer's memory; the peer hears of the end only after it."""
    run_alone(
        """
        zfast.share_memory()
        array = np.arange(100_000)
        publication = arena.publish(address(array), array.nbytes, exclusive=True)
        segment = arena.segment(publication.segment_index)
        mapping = arena.Mapping(segment.fd, segment.nbytes)

        class Lease:
            ended = []
            def __del__(self):
                self.ended.append(os.getpid())

        def lend():
            view = mapping.view(publication.offset, array.nbytes, Lease())
            return np.frombuffer(view, np.int64)

        def fork_reader(seen):
            go, end = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(end)
                inner = os.fork()  # the last reader is a child of the child
                if inner:
                    os._exit(0)
                os.read(go, 1)
                os._exit(0 if (seen == np.arange(100_000)).all() else 1)
            os.close(go)
            os.waitpid(pid, 0)
            return end

        earlier = lend()
        end = fork_reader(earlier)
        later = lend()
        del later
        assert len(Lease.ended) == 1, "it began after the fork"
        del earlier
        assert len(Lease.ended) == 1 and arena.settle_loans() == 1
        descriptors = len(os.listdir("/proc/self/fd"))
        os.close(end)
        import time
        deadline = time.monotonic() + 20
        while arena.settle_loans() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert Lease.ended == [os.getpid()] * 2
        assert len(os.listdir("/proc/self/fd")) == descriptors - 2

        seen = lend()
        in_child(lambda: None)
        import subprocess
        sleeper = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: None)
        del seen
        deadline = time.monotonic() + 20
        while arena.settle_loans() and time.monotonic() < deadline:
            time.sleep(0.01)  # the program that runs there now holds nothing
        assert len(Lease.ended) == 3
        sleeper.kill()
        sleeper.wait()
        """
    )
