"""What the arena does where there is no memory, no memfd, no shared memory, or little of each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arena_process import run_alone
from zfast import _arena

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits")

#: Makes memfd_create fail as a container's seccomp profile does.
REFUSE_MEMFD = """
import ctypes, platform, struct
number = {"x86_64": 319, "aarch64": 279}[platform.machine()]
filter = b"".join(struct.pack("HBBI", *one) for one in [
    (0x20, 0, 0, 0),             # load the system call's number
    (0x15, 0, 1, number),        # memfd_create?
    (0x06, 0, 0, 0x00050000 | 1),  # then fail with EPERM
    (0x06, 0, 0, 0x7FFF0000),    # else allow
])
held = ctypes.create_string_buffer(filter)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(held)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program) == 0, ctypes.get_errno()
"""
needs_filter = pytest.mark.skipif(
    os.uname().machine not in ("x86_64", "aarch64"), reason="needs its system call's number"
)


def in_namespace(shm_options: str) -> list[str]:
    """A command that runs another with a /dev/shm of its own."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    mount = f'mount -t tmpfs -o {shm_options} tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("cannot make a mount namespace here")
    return command


def test_a_full_arena_falls_back_to_the_heap():
    run_alone(
        """
        arena.start(arena.ArenaSettings(cap_nbytes=MIB, retain_nbytes=0))
        with zfast.share_memory():
            first = np.ones(120_000)
            second = np.ones(120_000)
            assert arena.owns(address(first)) and not arena.owns(address(second))
            assert (second == 1).all()
            for _ in range(2):
                try:
                    arena.copy_in(second)
                except ArenaFullError as error:
                    assert "ZFAST_ARENA_NBYTES" in str(error)
                else:
                    raise AssertionError
            first.resize(300_000, refcheck=False)
            assert not arena.owns(address(first)) and (first[:120_000] == 1).all()
            third = np.ones(120_000)
            assert arena.owns(address(third))
        assert arena.statistics().n_fallbacks >= 3
        assert arena.statistics().peak_mapped_nbytes <= MIB
        """
    )


def test_empty_memory_makes_room_for_a_larger_block():
    run_alone(
        """
        arena.start(arena.ArenaSettings(cap_nbytes=8 * MIB, segment_nbytes=MIB))
        blocks = [arena.allocate(MIB) for _ in range(8)]
        del blocks
        assert arena.statistics().retained_nbytes == 8 * MIB
        arena.allocate(7 * MIB)
        mapped = arena.statistics().mapped_nbytes
        try:
            arena.allocate(9 * MIB)
        except ArenaFullError:
            pass
        else:
            raise AssertionError
        assert arena.statistics().mapped_nbytes == mapped, "in vain nothing is given up"
        arena.prepare(8 * MIB)
        try:
            arena.prepare(9 * MIB)
        except ArenaFullError:
            pass
        else:
            raise AssertionError
        """
    )


def test_empty_memory_is_kept_warm_up_to_a_limit_and_can_be_given_back():
    run_alone(
        """
        arena.start(arena.ArenaSettings(retain_nbytes=4 * MIB, segment_nbytes=MIB))
        blocks = [arena.allocate(MIB) for _ in range(10)]
        del blocks
        assert arena.statistics().retained_nbytes == arena.statistics().mapped_nbytes == 4 * MIB
        arena.trim(2 * MIB)
        assert arena.statistics().mapped_nbytes == 2 * MIB
        thread = threading.Thread(target=arena.prepare, args=(6 * MIB,))
        thread.start()
        thread.join()
        block = arena.allocate(100)
        del block
        assert arena.statistics().mapped_nbytes == 6 * MIB
        block = arena.copy_in(b"x" * 100)
        publication = arena.publish(block.address, 100, exclusive=True)
        arena.segment(publication.segment_index)
        del block
        arena.trim()
        assert arena.released_segments() == []
        assert arena.unpublish(publication.generation)
        arena.trim()
        assert arena.released_segments() == [publication.segment_index]
        assert arena.released_segments() == []
        assert arena.statistics().mapped_nbytes == 0
        """
    )


@needs_filter
def test_without_memfd_an_unlinked_file_in_shared_memory():
    run_alone(
        REFUSE_MEMFD
        + """
zfast.share_memory()
assert arena.start().backing == "shm", arena.start()
array = np.arange(100_000)
publication = arena.publish(address(array), array.nbytes, exclusive=True)
segment = arena.segment(publication.segment_index)
mapping = arena.Mapping(segment.fd, segment.nbytes)
seen = np.frombuffer(mapping.view(publication.offset, array.nbytes, None), np.int64)
assert (seen == array).all()
import mmap
try:
    mmap.mmap(segment.fd, segment.nbytes)
except PermissionError:
    pass
else:
    raise AssertionError("a peer could write")
def check():
    array[:] = 0
in_child(check)
assert (array == np.arange(100_000)).all()
"""
    )


@needs_filter
def test_without_memfd_in_a_container_with_little_shared_memory():
    run_alone(
        REFUSE_MEMFD
        + """
zfast.share_memory()
assert arena.start().backing == "shm"
arrays = [np.full(1_500_000, i) for i in range(20)]
born = [arena.owns(address(array)) for array in arrays]
assert True in born and False in born
assert all((array == i).all() for i, array in enumerate(arrays))
""",
        prefix=in_namespace("size=64m"),
    )


def test_a_memfd_does_not_care_for_a_small_dev_shm():
    run_alone(
        """
        zfast.share_memory()
        arrays = [np.full(1_500_000, i) for i in range(20)]
        assert all(arena.owns(address(array)) for array in arrays)
        """,
        prefix=in_namespace("size=64m"),
    )


@needs_filter
@pytest.mark.parametrize("shm", ["size=1m", "ro"])
def test_without_memfd_and_shared_memory_a_disk_and_a_warning(shm):
    run_alone(
        REFUSE_MEMFD
        + """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert arena.start().backing == "disk"
assert [one.category for one in caught] == [ArenaOnDiskWarning]
with zfast.share_memory():
    array = np.arange(100_000)
assert arena.owns(address(array))
publication = arena.publish(address(array), array.nbytes, exclusive=True)
segment = arena.segment(publication.segment_index)
view = arena.Mapping(segment.fd, segment.nbytes).view(publication.offset, array.nbytes, None)
assert (np.frombuffer(view, np.int64) == array).all()
""",
        prefix=in_namespace(shm),
    )


@needs_filter
def test_no_shared_memory_at_all():
    run_alone(
        REFUSE_MEMFD
        + """
try:
    arena.start(arena.ArenaSettings(shm_folder="/nowhere/a", disk_folder="/nowhere/b"))
except ArenaError as error:
    assert "memfd: Operation not permitted, shm: No such file" in str(error), error
    assert "TMPDIR" in str(error)
else:
    raise AssertionError
"""
    )


@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer reserves terabytes"
)
def test_a_limit_on_the_address_space():
    run_alone(
        """
        import resource
        arena.start()
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + 400 * MIB, used + 400 * MIB))
        zfast.share_memory()
        arrays = [np.full(2_500_000, i) for i in range(16)]
        assert all((array == i).all() for i, array in enumerate(arrays))
        try:
            arena.allocate(300 * MIB)
        except ArenaFullError as error:
            assert "Cannot allocate memory" in str(error)
        else:
            raise AssertionError
        """
    )


def test_a_limit_on_descriptors():
    run_alone(
        """
        import resource
        arena.start(arena.ArenaSettings(segment_nbytes=MIB))
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        blocks = []
        try:
            while True:
                blocks.append(arena.allocate(MIB))
        except ArenaFullError as error:
            assert "ulimit" in str(error)
        assert len(blocks) == 16
        open("/dev/null").close()
        """
    )


def write(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)


MEMINFO = "MemTotal:       8000 kB\nMemFree: 10 kB\nMemAvailable:    6000 kB\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param("", {}, (8000, 6000), id="none"),
        pytest.param(
            "0::/a/b\n",
            {
                "a/b": {"memory__max": "max\n", "memory__current": "99\n"},
                "a": {"memory__max": "4096000\n", "memory__current": "2048000\n",
                      "memory__stat": "anon 5\ninactive_file 1024000\nx 1\n"},
            },
            (4000, 3000),
            id="version 2, the parent's limit, file pages not counted",
        ),
        pytest.param(
            "0::/a\n",
            {"a": {"memory__max": "4096000\n", "memory__high": "2048000\n",
                   "memory__current": "4096000\n"}},
            (2000, 0),
            id="version 2, above its high mark",
        ),
        pytest.param(
            "5:cpu:/x\n4:memory:/docker/abc\n",
            {"memory": {"memory__limit_in_bytes": "1024000\n", "memory__usage_in_bytes": "512000\n",
                        "memory__stat": "total_inactive_file 102400\n"}},
            (1000, 600),
            id="version 1, the container's mount",
        ),
        pytest.param(
            "1:name=systemd:/\n0::/\n",
            {"unified/": {"memory__max": "1024000\n", "memory__current": "nonsense"}},
            (8000, 6000),
            id="files that say nothing",
        ),
    ],
)  # fmt: skip
def test_memory_that_the_machine_and_cgroups_leave(tmp_path, groups, files, expected):
    write(tmp_path / "proc", meminfo=MEMINFO)
    write(tmp_path / "proc" / "self", cgroup=groups)
    for folder, texts in files.items():
        write(tmp_path / "cgroup" / folder, **texts)
    found = _arena.read_memory(str(tmp_path / "proc"), str(tmp_path / "cgroup"))
    assert tuple(nbytes // 1024 for nbytes in found) == expected


def test_memory_of_this_machine():
    total, available = _arena.read_memory()
    assert 1 << 26 < available <= total < 1 << 47
    assert _arena.read_memory("/nowhere", "/nowhere").total_nbytes > 0


def own_group():
    """A cgroup of this test's own, to write limits to; skips where that is not allowed."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            parent, limit = f"/sys/fs/cgroup/memory{path}", "memory.limit_in_bytes"
        elif not controllers and os.path.exists(f"/sys/fs/cgroup{path}/memory.current"):
            parent, limit = f"/sys/fs/cgroup{path}", "memory.max"
        else:
            continue
        folder = f"{parent}/zfast-test-{os.getpid()}"
        try:
            os.mkdir(folder)
        except OSError:
            continue
        if os.access(f"{folder}/{limit}", os.W_OK):
            return folder, limit
        os.rmdir(folder)
    pytest.skip("cannot make a memory cgroup here")


def test_a_real_cgroup_is_not_overrun():
    """Without the check the kernel would kill the process."""
    folder, limit = own_group()
    try:
        with open(f"{folder}/{limit}", "w") as file:
            file.write(str(256 << 20))
        join = f'echo $$ > {folder}/cgroup.procs && exec "$@"'
        run_alone(
            """
            settings = arena.start()
            assert settings.cap_nbytes == 128 * MIB, settings
            """,
            prefix=["sh", "-c", join, "sh"],
        )
        run_alone(
            """
            arena.start(arena.ArenaSettings(cap_nbytes=1024 * MIB))
            blocks = []
            try:
                while True:
                    blocks.append(arena.allocate(8 * MIB))
            except ArenaFullError as error:
                assert "cgroup" in str(error), error
            assert 4 <= len(blocks) <= 30, len(blocks)
            """,
            prefix=["sh", "-c", join, "sh"],
        )
    finally:
        os.rmdir(folder)


def test_subinterpreters_are_refused():
    printed = run_alone(
        """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        arena.start()
        one = interpreters.create()
        script = "try:\\n import zfast._arena\\nexcept ImportError as e:\\n print('refused', e)"
        interpreters.run_string(one, script)
        interpreters.destroy(one)
        """
    )
    assert printed.startswith("refused")
