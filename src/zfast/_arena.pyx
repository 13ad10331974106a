# cython: language_level=3, embedsignature=True
"""The compiled arena: shared memory that NumPy's arrays are born in, and views of other processes'.

The allocator is plain C (``src/arena``); this is its Python face and NumPy's handler. It knows no
socket. ``zfast.arena`` starts it with settings; nothing here starts by itself.

Threads: every function may be called from any. The GIL is released where memory is made, faulted
in or copied.
"""

import os
from typing import NamedTuple

from zfast.errors import ArenaError, ArenaFullError, ConfigError

cimport cython
from cpython.buffer cimport (
    PyBUF_ANY_CONTIGUOUS,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t
from libc.string cimport memcpy


cdef extern from "arena.h" nogil:
    ctypedef enum zf_backing:
        ZF_MEMFD
        ZF_SHM
        ZF_DISK
    ctypedef struct zf_arena_config:
        zf_backing backing
        const char *folder
        size_t segment_nbytes, cap_nbytes, retain_nbytes, margin_nbytes
    int ZF_NOT_STARTED, ZF_FORKED, ZF_OVER_CAP, ZF_MEMORY_LOW, ZF_TOO_MANY_SEGMENTS
    ctypedef struct zf_publication:
        uint8_t segment_id[16]
        uint64_t segment_index, generation
        size_t block_offset, block_nbytes, offset
    ctypedef struct zf_segment_info:
        uint8_t id[16]
        int fd
        char *base
        size_t nbytes
    ctypedef struct zf_arena_statistics:
        uint64_t n_segments, n_retired_segments, n_blocks, n_publications
        uint64_t n_allocations, n_refusals, n_segments_made
        uint64_t mapped_nbytes, live_nbytes, published_nbytes, free_nbytes, retained_nbytes
        uint64_t retired_nbytes, largest_free_nbytes, peak_mapped_nbytes, peak_live_nbytes
    ctypedef struct zf_memory:
        uint64_t total_nbytes, available_nbytes
    ctypedef struct zf_backed:
        int fd
        char *base
        size_t nbytes, reserved_nbytes
    int zf_arena_start(const zf_arena_config *)
    int zf_arena_started()
    int zf_arena_owns(const void *)
    void *zf_arena_malloc(size_t, int *)
    void zf_arena_free(void *)
    int zf_arena_publish(const void *, size_t, int, zf_publication *)
    int zf_arena_unpublish(uint64_t)
    int zf_arena_is_sealed(const void *, size_t)
    void *zf_arena_sealed_range(uint64_t, size_t, size_t)
    int zf_arena_segment(uint64_t, zf_segment_info *)
    size_t zf_arena_released(uint64_t *, size_t)
    int zf_arena_prepare(size_t)
    void zf_arena_trim(size_t)
    void zf_arena_count(zf_arena_statistics *)
    void zf_memory_read(const char *, const char *, zf_memory *)
    int zf_backed_make(zf_backing, const char *, size_t, zf_backed *)
    void zf_backed_drop(zf_backed *)
    int zf_peer_map_over(void *, size_t, int)
    ctypedef struct zf_range:
        size_t offset, nbytes
    int zf_extract(int, size_t, const zf_range *, size_t, int *)
    int zf_fd_is_sealed(int)
    uint64_t zf_loan_begin()
    void zf_loan_end()
    bint zf_loan_has_children(uint64_t)


cdef extern from "numpy_handler.h":
    size_t zf_threshold_nbytes
    int zf_numpy_import() except -1
    int zf_numpy_install() except -1
    int zf_numpy_remove() except -1


cdef extern from "sys/mman.h" nogil:
    int PROT_READ, MAP_SHARED
    void *MAP_FAILED
    void *mmap(void *, size_t, int, int, int, int64_t)
    int munmap(void *, size_t)


#: Names of what a segment's memory may be, best first.
BACKINGS = ("memfd", "shm", "disk")


# ---- start, and how much there is -----------------------------------------------------------

class Memory(NamedTuple):
    """What this process may take of the machine's memory, and of its cgroups'."""

    total_nbytes: int
    available_nbytes: int


def read_memory(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> Memory:
    """The memory this process could ever have, and what is available of it now.

    Args:
        proc: The folder of ``meminfo`` and ``self/cgroup``.
        cgroup: The folder that the cgroup file systems, version 1 or 2, are mounted in.
    """
    cdef zf_memory memory
    zf_memory_read(os.fsencode(proc), os.fsencode(cgroup), &memory)
    return Memory(memory.total_nbytes, memory.available_nbytes)


cdef zf_backing _backing(name) except *:
    if name not in BACKINGS:
        raise ConfigError(
            f"{name!r} is no backing for an arena", hint=f"take one of {', '.join(BACKINGS)}"
        )
    return <zf_backing><int>BACKINGS.index(name)


def probe(backing: str, folder: str, size_t nbytes) -> int:
    """Make a segment of ``nbytes``, write to it, seal it and drop it; 0, or the errno why not."""
    cdef zf_backed made
    cdef bytes encoded = os.fsencode(folder)
    cdef const char *path = encoded
    cdef zf_backing kind = _backing(backing)
    cdef int error
    with nogil:
        error = zf_backed_make(kind, path, nbytes, &made)
        if error == 0:
            made.base[0] = 1
            made.base[nbytes - 1] = 1
            zf_backed_drop(&made)
    return error


def start(
    *,
    backing: str,
    folder: str,
    size_t segment_nbytes,
    size_t cap_nbytes,
    size_t retain_nbytes,
    size_t margin_nbytes,
) -> None:
    """Start this process's arena. The first call decides; later ones change nothing.

    Raises:
        ArenaError: This process is the fork of one that had an arena.
    """
    cdef zf_arena_config config
    cdef bytes encoded = os.fsencode(folder)
    config.backing = _backing(backing)
    config.folder = encoded
    config.segment_nbytes = segment_nbytes
    config.cap_nbytes = cap_nbytes
    config.retain_nbytes = retain_nbytes
    config.margin_nbytes = margin_nbytes
    cdef int error = zf_arena_start(&config)
    if error:
        raise ArenaError(
            "the shared memory arena did not start",
            detail=os.strerror(error),
            hint="a forked process has none: start one with the spawn method instead",
        )


def started() -> bool:
    """Whether ``start`` succeeded in this process or in one that it was forked from."""
    return zf_arena_started() != 0


def _full(int why, nbytes):
    """The error that says why there is no memory."""
    if why == ZF_NOT_STARTED:
        return ArenaError("the shared memory arena is not started", hint="zfast.arena.start()")
    if why == ZF_FORKED:
        return ArenaFullError(
            "a forked process allocates no shared memory",
            hint="use its own memory, or start it with the spawn method",
        )
    if why == ZF_OVER_CAP:
        detail, hint = "the arena's limit is reached", "raise ZFAST_ARENA_NBYTES"
    elif why == ZF_MEMORY_LOW:
        detail = "the machine, or this process's cgroup, is short of memory"
        hint = "free some, or give the container more"
    elif why == ZF_TOO_MANY_SEGMENTS:
        detail = "half of the file descriptors this process may have are segments"
        hint = "raise its limit (ulimit -n)"
    else:
        detail, hint = os.strerror(why), None
    return ArenaFullError(f"no shared memory for {nbytes} bytes", detail=detail, hint=hint)


# ---- NumPy ----------------------------------------------------------------------------------

def install_handler(size_t threshold_nbytes) -> bool:
    """Let NumPy allocate arrays of at least ``threshold_nbytes`` from the arena, in this context.

    What it reaches is what NumPy's own context variable reaches: this context and its copies, so
    also asyncio tasks and ``asyncio.to_thread``; not bare threads or executors. Smaller arrays,
    large zeroed ones, and those that the arena has no room for, go to the handler that was
    installed before. The threshold is the process's; the last one counts.

    Returns:
        True, or False if it was installed in this context already.
    """
    global zf_threshold_nbytes
    zf_numpy_import()
    zf_threshold_nbytes = threshold_nbytes
    return zf_numpy_install() != 0


def remove_handler() -> bool:
    """Put back, in this context, the handler that was installed before.

    Arrays that exist keep their memory. Returns False, and changes nothing, if the context's
    handler is another library's.
    """
    zf_numpy_import()
    return zf_numpy_remove() != 0


# ---- blocks ---------------------------------------------------------------------------------

@cython.final
@cython.freelist(64)
cdef class Block:
    """Memory of the arena, as a buffer of bytes: writable until it is published.

    Lifetime: it is let go with the last reference, and free when it is not published either.
    """

    cdef char *_address
    cdef Py_ssize_t _nbytes

    def __init__(self):
        raise TypeError("blocks come from allocate() and copy_in()")

    def __dealloc__(self):
        if self._address is not NULL:
            zf_arena_free(self._address)

    def __getbuffer__(self, Py_buffer *view, int flags):
        cdef bint readonly = zf_arena_is_sealed(self._address, self._nbytes)
        PyBuffer_FillInfo(view, self, self._address, self._nbytes, readonly, flags)

    def __len__(self):
        return self._nbytes

    @property
    def address(self) -> int:
        """Where it starts: a multiple of the page size."""
        return <uintptr_t>self._address

    @property
    def nbytes(self) -> int:
        """How long it is, as asked for."""
        return self._nbytes


def allocate(Py_ssize_t nbytes) -> Block:
    """A block of uninitialised memory.

    Raises:
        ConfigError: ``nbytes`` is negative.
        ArenaFullError: There is no room; also a MemoryError.
        ArenaError: The arena is not started.
    """
    cdef int why = 0
    cdef void *address
    if nbytes < 0:
        raise ConfigError(f"a block cannot have {nbytes} bytes")
    with nogil:
        address = zf_arena_malloc(<size_t>nbytes, &why)
    if address is NULL:
        raise _full(why, nbytes)
    cdef Block block = Block.__new__(Block)
    block._address = <char *>address
    block._nbytes = nbytes
    return block


def copy_in(buffer) -> Block:
    """A block with a copy of ``buffer``'s bytes, as they lie in memory.

    Args:
        buffer: Contiguous, in C's or Fortran's order; it must not change meanwhile.

    Raises:
        ArenaFullError: There is no room; also a MemoryError.

    GIL released: while memory is made and copied.
    """
    cdef Py_buffer source
    cdef Block block
    PyObject_GetBuffer(buffer, &source, PyBUF_ANY_CONTIGUOUS)
    try:
        block = allocate(source.len)
        with nogil:
            memcpy(block._address, source.buf, <size_t>source.len)
    finally:
        PyBuffer_Release(&source)
    return block


def owns(uintptr_t address) -> bool:
    """Whether the address lies in one of this process's segments."""
    return zf_arena_owns(<void *>address) != 0


# ---- publications ---------------------------------------------------------------------------

class Publication(NamedTuple):
    """What a reader must know of published bytes. It pins their block until it is unpublished."""

    segment_id: bytes
    segment_index: int
    generation: int
    block_offset: int
    block_nbytes: int
    offset: int


def publish(uintptr_t address, size_t nbytes, *, bint exclusive):
    """Pin the block that the range lies in, so that other processes may read it.

    The block is immutable from then on, for the rest of its life.

    Args:
        address: Where the bytes start.
        nbytes: How many, at least 1.
        exclusive: The caller vouches that nobody will write to the block any more. Needed for
            the first publication of a block.

    Returns:
        A publication with a generation of its own. None if the range is not within one live
        block of the arena, if the block is neither sealed nor ``exclusive``, or if a fork made
        it private to this process: then copy it (``copy_in``).
    """
    cdef zf_publication out
    cdef int done = zf_arena_publish(<void *>address, nbytes, exclusive, &out)
    if done < 0:
        raise MemoryError
    if not done:
        return None
    return Publication(
        PyBytes_FromStringAndSize(<char *>out.segment_id, 16),
        out.segment_index,
        out.generation,
        out.block_offset,
        out.block_nbytes,
        out.offset,
    )


def unpublish(uint64_t generation) -> bool:
    """End a publication; its block is free once nobody holds it and no other publication is left.

    Returns False, and changes nothing, for a generation that is unknown or ended before.
    """
    return zf_arena_unpublish(generation) != 0


def is_sealed(uintptr_t address, size_t nbytes) -> bool:
    """Whether the range lies in one block that was published, and so cannot change."""
    return zf_arena_is_sealed(<void *>address, nbytes) != 0


# ---- segments -------------------------------------------------------------------------------

class Segment(NamedTuple):
    """One of this process's segments, for those who read it.

    ``fd`` is the arena's: duplicate it to pass it on, while a publication pins the segment. It
    cannot be used to write.
    """

    segment_id: bytes
    fd: int
    nbytes: int


def segment(uint64_t segment_index) -> Segment:
    """The segment with that index.

    Raises:
        ArenaError: It was released, never was, or is the parent's of this forked process.
    """
    cdef zf_segment_info info
    if not zf_arena_segment(segment_index, &info):
        raise ArenaError(
            f"this process has no segment {segment_index}",
            hint="a segment lives as long as something in it is published",
        )
    return Segment(PyBytes_FromStringAndSize(<char *>info.id, 16), info.fd, info.nbytes)


def released_segments() -> list:
    """Indices of segments that ``segment`` gave out and that were released since the last call.

    Their memory is the system's again once every other descriptor and mapping of them is closed.
    """
    cdef uint64_t some[64]
    cdef size_t n = 64, i
    found = []
    while n == 64:
        n = zf_arena_released(some, 64)
        for i in range(n):
            found.append(some[i])
    return found


# (begun, owner) of views that ended while a forked child may still read what they showed.
cdef list _kept_for_children = []


def settle_loans() -> int:
    """Let go of the owners of ended views that no forked child can read any more.

    A child inherits its parent's views of peers' memory; the owner of such a view is kept until
    the child has ended. This is also done whenever a view begins or ends, so call it where a
    process may be idle for long.

    Returns:
        How many owners are still kept.
    """
    global _kept_for_children
    cdef list kept = _kept_for_children
    if not kept:
        return 0
    _kept_for_children = []  # letting go of an owner may run any code, this too
    for begun, owner in kept:
        if zf_loan_has_children(begun):
            _kept_for_children.append((begun, owner))
    return len(_kept_for_children)


@cython.final
@cython.no_gc_clear
cdef class SharedView:
    """Read-only bytes of shared memory. It keeps the mapping, and its owner, alive.

    The owner of a view of a peer's memory is kept beyond the view's end while a child that was
    forked meanwhile may read it (``settle_loans``).
    """

    cdef object _mapping  # None: this process's own memory
    cdef object _owner
    cdef char *_address
    cdef Py_ssize_t _nbytes
    cdef uint64_t _begun

    def __init__(self):
        raise TypeError("views come from Mapping.view() and own_view()")

    def __dealloc__(self):
        if self._mapping is None:
            return
        zf_loan_end()
        if self._owner is not None and zf_loan_has_children(self._begun):
            _kept_for_children.append((self._begun, self._owner))
        elif _kept_for_children:
            settle_loans()

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self._address, self._nbytes, True, flags)

    def __len__(self):
        return self._nbytes

    @property
    def address(self) -> int:
        """Where it starts in this process."""
        return <uintptr_t>self._address

    @property
    def nbytes(self) -> int:
        """How long it is."""
        return self._nbytes


cdef SharedView _view(mapping, owner, char *address, Py_ssize_t nbytes):
    cdef SharedView view = SharedView.__new__(SharedView)
    view._owner = owner
    view._address = address
    view._nbytes = nbytes
    if mapping is not None:
        settle_loans()
        view._begun = zf_loan_begin()
        view._mapping = mapping
    return view


@cython.final
cdef class Mapping:
    """A peer's segment, mapped once and read-only.

    Args:
        fd: The segment's memory; not kept, so close it afterwards.
        nbytes: The segment's length.

    Raises:
        ConfigError: ``nbytes`` is not positive.
        ArenaError: The file is shorter than that, or cannot be mapped.

    Lifetime: unmapped with the last reference; its views hold one.
    """

    cdef char *_base
    cdef size_t _nbytes
    cdef bint _sealed

    def __cinit__(self, int fd, Py_ssize_t nbytes):
        if nbytes <= 0:
            raise ConfigError(f"a segment cannot have {nbytes} bytes")
        try:
            there = os.fstat(fd).st_size
        except OSError as error:
            raise ArenaError(
                f"descriptor {fd} is no shared memory", detail=error.strerror
            ) from error
        if there < nbytes:
            raise ArenaError(
                f"a segment of {nbytes} bytes was announced, but its memory has {there}",
                hint="the peer is broken or hostile: drop its connection",
            )
        cdef void *base
        cdef int error_number = 0
        with nogil:
            base = mmap(NULL, <size_t>nbytes, PROT_READ, MAP_SHARED, fd, 0)
            if base == MAP_FAILED:
                error_number = errno
        if error_number:
            raise ArenaError(
                f"a segment of {nbytes} bytes cannot be mapped", detail=os.strerror(error_number)
            )
        self._base = <char *>base
        self._nbytes = <size_t>nbytes
        self._sealed = zf_fd_is_sealed(fd)

    def __dealloc__(self):
        if self._base is not NULL:
            munmap(self._base, self._nbytes)

    @property
    def address(self) -> int:
        """Where it starts in this process."""
        return <uintptr_t>self._base

    @property
    def nbytes(self) -> int:
        """How long it is."""
        return self._nbytes

    @property
    def sealed(self) -> bool:
        """Whether the kernel keeps everyone from shrinking it and from mapping it to write."""
        return self._sealed

    def replace(self, int fd) -> None:
        """Show another file, at the same addresses, to those who read here now, and later.

        What they may read must be the same there.

        Args:
            fd: Its memory, at least as long; not kept, so close it afterwards.

        Raises:
            ArenaError: It cannot be mapped; then all is as it was.
        """
        cdef int error
        with nogil:
            error = zf_peer_map_over(self._base, self._nbytes, fd)
        if error:
            raise ArenaError(
                f"a segment of {self._nbytes} bytes cannot be mapped again",
                detail=os.strerror(error),
            )
        self._sealed = zf_fd_is_sealed(fd)

    def contains(self, uintptr_t address) -> bool:
        """Whether an address of this process lies in it."""
        return <uintptr_t>self._base <= address < <uintptr_t>self._base + self._nbytes

    def view(self, size_t offset, size_t nbytes, owner) -> SharedView:
        """Read-only bytes of it.

        Args:
            offset: Where they start in the segment.
            nbytes: How many.
            owner: Kept alive as long as the view, and as any child forked meanwhile: whatever
                says that they may be read. In such a child it may be let go at any time, which
                must end nothing in the parent's name.

        Raises:
            ArenaError: They are not all in the segment.
        """
        if offset > self._nbytes or nbytes > self._nbytes - offset:
            raise ArenaError(
                f"{nbytes} bytes at {offset} are not within a segment of {self._nbytes} bytes",
                hint="the descriptor is forged or of another segment",
            )
        return _view(self, owner, self._base + offset, <Py_ssize_t>nbytes)


def extract(int fd, size_t nbytes, ranges) -> int:
    """Copy some ranges of a segment into a new one of the same length, in their places.

    Args:
        fd: The segment's memory.
        nbytes: Its length.
        ranges: Offset and length of each. The rest of the new segment takes no memory.

    Returns:
        The new segment's descriptor, which cannot be used to write.

    Raises:
        ArenaError: There is no memory for it, or there are no memfds here.

    GIL released: throughout.
    """
    cdef Py_ssize_t n = len(ranges), i
    cdef int made = -1, error
    cdef zf_range *c_ranges = <zf_range *>PyMem_Malloc((n + 1) * sizeof(zf_range))
    if c_ranges is NULL:
        raise MemoryError
    try:
        for i in range(n):
            c_ranges[i].offset, c_ranges[i].nbytes = ranges[i]
        with nogil:
            error = zf_extract(fd, nbytes, c_ranges, <size_t>n, &made)
    finally:
        PyMem_Free(c_ranges)
    if error:
        raise ArenaError(
            f"{n} parts of a segment of {nbytes} bytes cannot be copied",
            detail=os.strerror(error),
        )
    return made


def own_view(uint64_t segment_index, size_t offset, size_t nbytes, owner) -> SharedView:
    """Read-only bytes of this process's own segment, out of a published block.

    Args:
        segment_index: Whose they are, as in the publication.
        offset: Where they start in the segment.
        nbytes: How many.
        owner: Kept alive as long as the view; it must keep the block published.

    Raises:
        ArenaError: They are not all in one published block.
    """
    cdef void *address = zf_arena_sealed_range(segment_index, offset, nbytes)
    if address is NULL:
        raise ArenaError(
            f"{nbytes} bytes at {offset} of segment {segment_index} are not in a published block",
            hint="the descriptor is forged or stale",
        )
    return _view(None, owner, <char *>address, <Py_ssize_t>nbytes)


# ---- warm memory ----------------------------------------------------------------------------

class ArenaStatistics(NamedTuple):
    """The arena in numbers; all of one moment.

    ``live`` blocks are held, ``published`` ones pinned; one may be both. ``free`` memory can be
    allocated; the part of it in empty segments is ``retained``. ``retired`` segments are from
    before a fork and are released when their last block goes. ``n_fallbacks`` counts
    allocations that found no room. ``fragmentation`` is the share of free memory outside the
    largest free block.
    """

    n_segments: int
    n_retired_segments: int
    n_segments_made: int
    n_blocks: int
    n_publications: int
    n_allocations: int
    n_fallbacks: int
    mapped_nbytes: int
    peak_mapped_nbytes: int
    live_nbytes: int
    peak_live_nbytes: int
    published_nbytes: int
    free_nbytes: int
    retained_nbytes: int
    retired_nbytes: int
    largest_free_nbytes: int
    fragmentation: float


def statistics() -> ArenaStatistics:
    """The arena in numbers."""
    cdef zf_arena_statistics now
    zf_arena_count(&now)
    fragmentation = 1 - now.largest_free_nbytes / now.free_nbytes if now.free_nbytes else 0.0
    return ArenaStatistics(
        now.n_segments,
        now.n_retired_segments,
        now.n_segments_made,
        now.n_blocks,
        now.n_publications,
        now.n_allocations,
        now.n_refusals,
        now.mapped_nbytes,
        now.peak_mapped_nbytes,
        now.live_nbytes,
        now.peak_live_nbytes,
        now.published_nbytes,
        now.free_nbytes,
        now.retained_nbytes,
        now.retired_nbytes,
        now.largest_free_nbytes,
        fragmentation,
    )


def prepare(size_t nbytes) -> None:
    """Make and fault in memory until ``nbytes`` are free, and keep at least that much warm.

    Raises:
        ArenaFullError: There is no room for all of it; what was made stays.

    GIL released: throughout.
    """
    cdef int why
    with nogil:
        why = zf_arena_prepare(nbytes)
    if why:
        raise _full(why, nbytes)


def trim(size_t retain_nbytes=0) -> None:
    """Give empty segments back to the system until at most ``retain_nbytes`` are kept warm."""
    with nogil:
        zf_arena_trim(retain_nbytes)
