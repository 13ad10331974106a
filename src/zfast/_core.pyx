# cython: language_level=3, embedsignature=True
"""The compiled core: frames, batches and lent buffers over pyzmq's sockets.

It cimports pyzmq's own Cython API and calls the very libzmq that pyzmq loaded (``_libzmq.h``).
The wire format is specified, and written a second time, in ``_fallback.py``.

Threads: a ZeroMQ socket belongs to one thread at a time; so do the functions here that take one.
Every call into libzmq releases the GIL. No function here blocks except ``poll`` and
``SendTracker.wait``: sends and receives say that they would have blocked.
"""

import os
import threading
from pickle import dumps
from time import monotonic

from zmq.backend.cython import _zmq as _pyzmq_extension

from zfast.errors import (
    ConfigError,
    FrameTooLargeError,
    ProtocolError,
    TransportError,
    VersionMismatchError,
)

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.dict cimport PyDict_Next
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.object cimport PyObject
from cpython.pythread cimport (
    NOWAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
    WAIT_LOCK,
)
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from zmq cimport Socket


cdef extern from "unistd.h" nogil:
    int usleep(unsigned int)


cdef extern from "zmq.h" nogil:
    ctypedef struct zmq_msg_t:
        pass
    ctypedef struct zmq_pollitem_t:
        void *socket
        int fd
        short events
        short revents
    int ZMQ_POLLIN, ZMQ_POLLOUT, ZMQ_DONTWAIT, ZMQ_SNDMORE, ZMQ_SRCFD


cdef extern from "_libzmq.h" nogil:
    ctypedef void zf_free_fn(void *, void *) noexcept
    ctypedef struct zf_tracker:
        pass
    ctypedef struct zf_loan:
        pass
    int zf_pid
    const char *zf_bind(const char *)
    void zf_init()
    void zf_zmq_version(int *, int *, int *)
    int zf_zmq_msg_init(zmq_msg_t *)
    int zf_zmq_msg_init_size(zmq_msg_t *, size_t)
    int zf_zmq_msg_init_data(zmq_msg_t *, void *, size_t, zf_free_fn *, void *)
    int zf_zmq_msg_send(zmq_msg_t *, void *, int)
    int zf_zmq_msg_recv(zmq_msg_t *, void *, int)
    int zf_zmq_msg_move(zmq_msg_t *, zmq_msg_t *)
    int zf_zmq_msg_close(zmq_msg_t *)
    void *zf_zmq_msg_data(zmq_msg_t *)
    size_t zf_zmq_msg_size(const zmq_msg_t *)
    int zf_zmq_msg_more(const zmq_msg_t *)
    int zf_zmq_msg_get(const zmq_msg_t *, int)
    const char *zf_zmq_msg_gets(const zmq_msg_t *, const char *)
    int zf_zmq_poll(zmq_pollitem_t *, int, long)
    int zf_zmq_errno()
    const char *zf_zmq_strerror(int)
    void zf_on_release(void *, void *) noexcept
    zf_tracker *zf_tracker_new()
    void zf_tracker_unref(zf_tracker *)
    int zf_tracker_done(zf_tracker *)
    void zf_tracker_hold(zf_tracker *)
    void zf_tracker_unhold(zf_tracker *)
    long zf_lent()
    int zf_wait(zf_tracker *, long)


cdef extern from "_pool.h" nogil:
    ctypedef struct zf_block:
        char *data
        size_t capacity
    void zf_pool_init()
    zf_block *zf_pool_take(size_t)
    void zf_pool_put(zf_block *)
    void zf_pool_trim(size_t, int64_t)
    void zf_pool_limit(size_t)
    void zf_pool_stats(size_t *, size_t *, uint64_t *, uint64_t *)
    int64_t zf_now_ms()
    void zf_copy_past_cache(char *, const char *, size_t)
    void zf_keep_heap_warm(size_t)


cdef extern from "_libzmq.h":
    int zf_lend(object, zf_tracker *, zf_loan **) except -1
    long zf_drain()


cdef extern from *:
    """
    #define prefetch(address) __builtin_prefetch(address)
    static inline void *zf_loan_data(zf_loan *loan) { return loan->view.buf; }
    static inline size_t zf_loan_nbytes(zf_loan *loan) { return (size_t)loan->view.len; }
    """
    void prefetch(PyObject *) nogil
    void *zf_loan_data(zf_loan *) nogil
    size_t zf_loan_nbytes(zf_loan *) nogil


# ---- binding to libzmq ---------------------------------------------------------------------

def _bind_libzmq():
    cdef bytes path = os.fsencode(_pyzmq_extension.__file__)
    cdef const char *missing = zf_bind(path)
    cdef int major, minor, patch
    if missing is not NULL:
        name = missing.decode()
        raise ImportError(
            f"zfast cannot reach libzmq inside pyzmq: {name or 'its extension'} was not found in "
            f"{_pyzmq_extension.__file__}. Install the pyzmq wheel for Linux or macOS, "
            "version 27 or later (pip install --only-binary pyzmq 'pyzmq>=27'); wheels for "
            "Windows and builds for PyPy hide libzmq."
        )
    zf_zmq_version(&major, &minor, &patch)
    if (major, minor, patch) < (4, 3, 5):
        raise ImportError(
            f"zfast needs libzmq 4.3.5 or later, pyzmq brought {major}.{minor}.{patch}. "
            "Install a current pyzmq wheel: pip install -U --only-binary pyzmq 'pyzmq>=27'."
        )
    zf_init()
    zf_pool_init()
    return (major, minor, patch)


LIBZMQ_VERSION = _bind_libzmq()

POLLIN = ZMQ_POLLIN
POLLOUT = ZMQ_POLLOUT

# The wire format, see _fallback.py.
cdef enum:
    HEADER = 32
    ALIGN = 64
    VERSION = 2
    BATCH_FLAG = 1
    BYTES_FLAG = 8
    CHUNK = 7
    BUFFERS_LIMIT = 1 << 20
    INLINE_MAX = 64 * 1024
    INLINE_TOTAL_MAX = 1024 * 1024
    BATCH_NBYTES = 1024 * 1024
    BATCH_COUNT = 65536
    # How long warm memory stays in the pool when nobody asks for it.
    POOL_IDLE_MS = 10_000
    # How long the reaper leaves returned buffers to whoever sends next.
    REAP_DELAY_US = 2000
    # What each message takes from a peer's credit beside its payload.
    COST = 1024
    # How many payloads ahead to ask for one's memory: it is rarely in the cache.
    PREFETCH = 8
    # A busy receiver acknowledges at least every so many messages.
    ACKNOWLEDGE_EVERY = 64
    # Streams that are larger than what stays in a processor's cache until somebody reads it.
    PAST_CACHE_MIN = 16 * 1024 * 1024
    # How long chunks may follow each other before the link looks at what else there is to do.
    PATIENCE_MS = 5
    # No frame that is longer is taken for a token's.
    TOKEN_MAX = 64 * 1024
cdef uint64_t INLINE_BIT = (<uint64_t>1) << 63
cdef uint64_t BATCH_LIMIT = 0xFFFFFFFF

WIRE_VERSION = VERSION
FLAG_BATCH = BATCH_FLAG
FLAG_BYTES = BYTES_FLAG
KIND_CHUNK = CHUNK
INLINE_MAX_NBYTES = INLINE_MAX
MESSAGE_COST = COST

cdef bint layout_checked = False


cdef void *handle_of(Socket socket) except NULL:
    """The raw handle, after the checks that pyzmq would have made."""
    global layout_checked
    if socket is None or socket._closed or socket.handle is NULL:
        raise TransportError("the socket is closed", hint="open a new one")
    if socket._pid != zf_pid:
        raise TransportError(
            f"the socket belongs to process {socket._pid}, this is its fork {zf_pid}",
            hint="open sockets after a fork, in the process that uses them",
        )
    if not layout_checked:
        # pyzmq's struct could change without changing its size: compare with its public API.
        if <size_t>socket.handle != <size_t>socket.underlying:
            raise ImportError(
                "this pyzmq lays out its Socket otherwise than the one zfast was built with: "
                "rebuild zfast (pip install --no-binary zfast --force-reinstall zfast)"
            )
        layout_checked = True
    return socket.handle


cdef int transport_error(str what) except -1:
    cdef int number = zf_zmq_errno()
    raise TransportError(f"{what}: {zf_zmq_strerror(number).decode()}", errno=number)


cdef inline size_t aligned(size_t offset, size_t alignment) noexcept nogil:
    return (offset + alignment - 1) & ~(alignment - 1)


# ---- lent buffers --------------------------------------------------------------------------

cdef int reaper_pid = 0


def _reap_for_ever():
    while True:
        with nogil:
            # The pool has no signal: look now and then.
            zf_wait(NULL, POOL_IDLE_MS // 2)
            # A busy sender drains the list by itself, and does not want to share the GIL for it.
            usleep(REAP_DELAY_US)
        zf_drain()
        with nogil:
            zf_pool_trim(<size_t>-1, zf_now_ms() - POOL_IDLE_MS)


cdef int ensure_reaper() except -1:
    global reaper_pid
    if reaper_pid != zf_pid:
        reaper_pid = zf_pid
        threading.Thread(target=_reap_for_ever, name="zfast-reaper", daemon=True).start()
    return 0


def lent_buffers() -> int:
    """How many buffers libzmq holds, or has returned and nobody has released yet."""
    zf_drain()
    return zf_lent()


cdef class SendTracker:
    """Tells when libzmq no longer reads the buffers of one message.

    Threads: any. Lifetime: independent of the socket and the message.
    """

    cdef zf_tracker *tracker

    def __cinit__(self):
        self.tracker = zf_tracker_new()
        if self.tracker is NULL:
            raise MemoryError

    def __dealloc__(self):
        zf_tracker_unref(self.tracker)

    @property
    def done(self) -> bool:
        """True once the caller may change the buffers again."""
        return zf_tracker_done(self.tracker) != 0

    def hold(self) -> None:
        """Count as not done until ``unhold``: more of the message is still to be sent."""
        zf_tracker_hold(self.tracker)

    def unhold(self) -> None:
        """Undo one ``hold``."""
        zf_tracker_unhold(self.tracker)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until ``done``, at most ``timeout`` seconds. Returns ``done``; releases the GIL."""
        cdef long left_ms, slice_ms
        cdef int done = zf_tracker_done(self.tracker)
        left_ms = -1 if timeout is None else max(0, int(timeout * 1000))
        while not done:
            # A condition variable is deaf to signals: come up for them.
            slice_ms = 200 if left_ms < 0 else min(left_ms, 200)
            with nogil:
                done = zf_wait(self.tracker, slice_ms)
            PyErr_CheckSignals()
            if left_ms >= 0:
                left_ms -= slice_ms
                if left_ms <= 0:
                    break
        zf_drain()
        return zf_tracker_done(self.tracker) != 0


# ---- warm memory ---------------------------------------------------------------------------

@cython.final
cdef class Block:
    """Writable memory for one received value, warm when the pool had some of about its size.

    Args:
        nbytes: Its length. What it holds at first is not defined.

    Raises:
        MemoryError: There is no memory.

    Lifetime: views keep it alive; with the last one its memory goes back to the pool. The address
    is a multiple of 4096. Threads: any, for parts that do not overlap.
    """

    cdef zf_block *block
    cdef size_t nbytes

    def __cinit__(self, size_t nbytes):
        with nogil:
            self.block = zf_pool_take(nbytes)
        if self.block is NULL:
            raise MemoryError(f"no memory to receive a value of {nbytes} bytes")
        self.nbytes = nbytes
        ensure_reaper()

    def __dealloc__(self):
        if self.block is not NULL:
            zf_pool_put(self.block)

    def __len__(self):
        return self.nbytes

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.block.data, self.nbytes, 0, flags)

    def __releasebuffer__(self, Py_buffer *view):
        pass

    def write(self, size_t offset, const uint8_t[::1] piece not None) -> None:
        """Copy ``piece`` to ``offset``; releases the GIL.

        Raises:
            ValueError: It does not fit; nothing was written.
        """
        cdef size_t nbytes = piece.shape[0]
        if offset > self.nbytes or nbytes > self.nbytes - offset:
            raise ValueError(f"{nbytes} bytes at {offset} do not fit in {self.nbytes}")
        if nbytes:
            with nogil:
                memcpy(self.block.data + offset, &piece[0], nbytes)


def pool_statistics() -> tuple[int, int, int, int]:
    """Bytes retained for reuse, bytes in use; blocks reused and mapped so far."""
    cdef size_t retained, in_use
    cdef uint64_t reused, mapped
    zf_pool_stats(&retained, &in_use, &reused, &mapped)
    return retained, in_use, reused, mapped


def limit_pool(size_t nbytes) -> None:
    """Retain at most so many bytes for reuse, from now on. Memory in use is not counted."""
    with nogil:
        zf_pool_limit(nbytes)


def trim_pool() -> None:
    """Give back all memory that is retained for reuse."""
    with nogil:
        zf_pool_trim(0, 0)


def keep_heap_warm(size_t nbytes) -> None:
    """Let libzmq's frames, up to ``nbytes`` of them, come and go without page faults."""
    with nogil:
        zf_keep_heap_warm(nbytes)


# ---- received frames -----------------------------------------------------------------------

@cython.final
cdef class Frame:
    """One received frame: a read-only buffer over libzmq's own memory, freed with its last view."""

    cdef zmq_msg_t message

    def __cinit__(self):
        zf_zmq_msg_init(&self.message)

    def __dealloc__(self):
        zf_zmq_msg_close(&self.message)

    def __len__(self):
        return zf_zmq_msg_size(&self.message)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(
            view, self, zf_zmq_msg_data(&self.message), zf_zmq_msg_size(&self.message), 1, flags
        )

    def __releasebuffer__(self, Py_buffer *view):
        pass

    def tobytes(self) -> bytes:
        """A copy of the frame."""
        return PyBytes_FromStringAndSize(
            <char *>zf_zmq_msg_data(&self.message), zf_zmq_msg_size(&self.message)
        )


@cython.final
cdef class Message:
    """One received message.

    Attributes:
        kind, flags, request_id: From the header.
        body: The body: bytes, or a read-only view that borrows from the header frame.
        buffers: Read-only views of the payload's buffers in the order they were sent. Large ones
            borrow from libzmq's memory, inline ones from one 16-byte aligned copy.
        nbytes: Of the body and the buffers together.
        routing_id: The sender's, when received from a ROUTER; else None.
        source_fd: Of a message without body and buffers: the descriptor of the connection that it
            came from, libzmq's own; else, and over inproc, -1.
    """

    cdef readonly int kind
    cdef readonly int flags
    cdef readonly int source_fd
    cdef readonly uint64_t nbytes
    cdef readonly object request_id
    cdef readonly object body
    cdef readonly list buffers
    cdef readonly bytes routing_id


@cython.final
cdef class Batch:
    """Many payloads in one frame: a sequence of read-only views, and the arrays behind it.

    Attributes:
        kind, request_id: From the header.
        data: Read-only view, shape (nbytes,), uint8: the payloads end to end.
        offsets: Read-only view, shape (n + 1,), uint32: payload i is ``data[offsets[i]:
            offsets[i + 1]]``. ``numpy.asarray`` takes both without a copy.

    Lifetime: every view keeps the frame alive. Cost: O(1) an item, no copy.
    """

    cdef readonly int kind
    cdef readonly object request_id
    cdef object view
    cdef const uint8_t *table
    cdef const uint8_t *payload
    cdef Py_ssize_t n
    cdef Py_ssize_t data_start
    cdef readonly bytes routing_id

    cdef inline uint32_t offset(self, Py_ssize_t index) noexcept nogil:
        cdef uint32_t value
        memcpy(&value, self.table + 4 * index, 4)
        return value

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        cdef Py_ssize_t i
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.n))]
        i = index
        if i < 0:
            i += self.n
        if i < 0 or i >= self.n:
            raise IndexError(f"payload {index} of a batch of {self.n}")
        return self.view[self.data_start + self.offset(i):self.data_start + self.offset(i + 1)]

    def __iter__(self):
        cdef Py_ssize_t i
        cdef Py_ssize_t start = self.data_start
        for i in range(self.n):
            yield self.view[start + self.offset(i):start + self.offset(i + 1)]

    def to_bytes_list(self) -> list[bytes]:
        """Copy every payload into a ``bytes`` object of its own."""
        cdef Py_ssize_t i
        cdef uint32_t start, stop = 0
        cdef list out = [None] * self.n
        for i in range(self.n):
            start = stop
            stop = self.offset(i + 1)
            out[i] = PyBytes_FromStringAndSize(<const char *>self.payload + start, stop - start)
        return out

    @property
    def nbytes(self) -> int:
        """Of all payloads together."""
        return self.offset(self.n)

    @property
    def data(self) -> memoryview:
        return self.view[self.data_start:]

    @property
    def offsets(self) -> memoryview:
        return self.view[HEADER:HEADER + 4 * (self.n + 1)].cast("I")


# ---- decoding ------------------------------------------------------------------------------

cdef struct Header:
    uint8_t kind
    uint16_t flags
    uint64_t request_id
    uint32_t n
    uint64_t body_nbytes


cdef int decode_header(const uint8_t *data, size_t nbytes, Header *out) except -1:
    cdef uint32_t zero
    if nbytes < HEADER:
        raise ProtocolError(
            f"the header frame has {nbytes} bytes, fewer than {HEADER}", offset=nbytes
        )
    if data[0] != b"Z" or data[1] != b"F" or data[2] != b"S" or data[3] != b"T":
        raise ProtocolError(f"not a zfast frame: its magic is {data[:4]!r}, not b'ZFST'")
    if data[4] != VERSION:
        raise VersionMismatchError(
            f"the peer speaks wire version {data[4]}, this process speaks {VERSION}",
            offset=4,
            hint="install the same zfast version on both sides",
        )
    out.kind = data[5]
    memcpy(&out.flags, data + 6, 2)
    memcpy(&out.request_id, data + 8, 8)
    memcpy(&out.n, data + 16, 4)
    memcpy(&zero, data + 20, 4)
    memcpy(&out.body_nbytes, data + 24, 8)
    if zero:
        raise ProtocolError("reserved header bytes are not zero", offset=20)
    return 0


cdef Message decode_views(list views):
    """Take apart the frames in ``views``: read-only one-dimensional memoryviews."""
    cdef Header header
    cdef Py_buffer head
    cdef const uint8_t *data
    cdef size_t nbytes, position, inline_start, end
    cdef uint64_t entry, length, total
    cdef Py_ssize_t next_frame = 1, n_frames = len(views), have
    cdef uint32_t i
    cdef Message message = Message.__new__(Message)
    cdef list buffers = []
    message.source_fd = -1
    if n_frames == 0:
        raise ProtocolError("the message has no frame")
    view = views[0]
    PyObject_GetBuffer(view, &head, PyBUF_SIMPLE)
    try:
        data = <const uint8_t *>head.buf
        nbytes = head.len
        decode_header(data, nbytes, &header)
        if header.flags & BATCH_FLAG:
            raise ProtocolError("a batch where a message was expected", offset=6)
        if header.n > BUFFERS_LIMIT:
            raise FrameTooLargeError(
                f"{header.n} buffers announced, the limit is {BUFFERS_LIMIT}", offset=16
            )
        position = HEADER + 8 * <size_t>header.n
        if position > nbytes or header.body_nbytes > nbytes - position:
            raise ProtocolError(
                f"the header announces {header.n} buffers and a body of {header.body_nbytes} "
                f"bytes, the frame has {nbytes} bytes",
                offset=24,
            )
        message.body = view[position:position + header.body_nbytes]
        total = header.body_nbytes
        position += header.body_nbytes
        # One copy brings all inline buffers to an aligned address: libzmq cuts small frames from
        # its read buffer at any address, and lets that buffer go once they are copied.
        inline_start = aligned(position, ALIGN)
        inline_view = None
        for i in range(header.n):
            memcpy(&entry, data + HEADER + 8 * <size_t>i, 8)
            length = entry & ~INLINE_BIT
            if entry & INLINE_BIT:
                position = aligned(position, ALIGN)
                if position > nbytes or length > nbytes - position:
                    raise ProtocolError(
                        f"inline buffer {i} of {length} bytes ends past the frame",
                        offset=HEADER + 8 * i,
                    )
                if inline_view is None:
                    inline_view = memoryview(PyBytes_FromStringAndSize(
                        <const char *>data + inline_start, nbytes - inline_start
                    ))
                end = position + length
                total += length
                buffers.append(inline_view[position - inline_start:end - inline_start])
                position = end
                continue
            if next_frame >= n_frames:
                raise ProtocolError(
                    f"buffer {i} has no frame: the message has only {n_frames}",
                    frame_index=next_frame, offset=HEADER + 8 * i,
                )
            have = views[next_frame].nbytes
            if <uint64_t>have != length:
                raise ProtocolError(
                    f"frame {next_frame} has {have} bytes, announced {length}",
                    frame_index=next_frame, offset=HEADER + 8 * i,
                )
            buffers.append(views[next_frame])
            total += length
            next_frame += 1
        if position != nbytes:
            raise ProtocolError(
                f"{nbytes - position} bytes left over in the header frame", offset=position
            )
        if next_frame != n_frames:
            raise ProtocolError(f"{n_frames - next_frame} frames left over", frame_index=next_frame)
    finally:
        PyBuffer_Release(&head)
    message.kind = header.kind
    message.flags = header.flags
    message.request_id = header.request_id
    message.buffers = buffers
    message.nbytes = total
    return message


cdef Batch decode_batch_view(object view):
    """Check the batch frame behind ``view``, a read-only one-dimensional memoryview."""
    cdef Header header
    cdef Py_buffer frame
    cdef const uint8_t *data
    cdef size_t nbytes, start
    cdef uint32_t previous, offset = 0
    cdef Py_ssize_t i
    cdef Batch batch = Batch.__new__(Batch)
    PyObject_GetBuffer(view, &frame, PyBUF_SIMPLE)
    try:
        data = <const uint8_t *>frame.buf
        nbytes = frame.len
        decode_header(data, nbytes, &header)
        if not header.flags & BATCH_FLAG:
            raise ProtocolError("a message where a batch was expected", offset=6)
        if header.body_nbytes:
            raise ProtocolError("a batch with a body", offset=24)
        start = aligned(HEADER + 4 * (<size_t>header.n + 1), 8)
        if start > nbytes:
            raise ProtocolError(
                f"{header.n} payloads announced, the frame has {nbytes} bytes", offset=16
            )
        memcpy(&previous, data + HEADER, 4)
        memcpy(&offset, data + HEADER + 4 * <size_t>header.n, 4)
        if previous != 0 or offset != nbytes - start:
            raise ProtocolError(
                f"the payloads span {previous} to {offset}, "
                f"the frame holds {nbytes - start} bytes of data",
                offset=HEADER,
            )
        for i in range(header.n):
            memcpy(&offset, data + HEADER + 4 * (i + 1), 4)
            if offset < previous:
                raise ProtocolError(
                    f"payload {i} ends before it starts", offset=HEADER + 4 * i
                )
            previous = offset
    finally:
        PyBuffer_Release(&frame)
    batch.kind = header.kind
    batch.request_id = header.request_id
    batch.view = view
    # `view` is kept, and with it the memory behind the two pointers.
    batch.table = data + HEADER
    batch.payload = data + start
    batch.n = header.n
    batch.data_start = start
    return batch


cdef object readonly_view(object buffer):
    view = memoryview(buffer)
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B")
    return view.toreadonly()


def decode_message(frames) -> Message:
    """Take one message apart.

    Args:
        frames: The message's frames, C-contiguous bytes-like; the header frame first.

    Returns:
        A ``Message`` whose large buffers borrow from ``frames``.

    Raises:
        ProtocolError: The frames are not one whole message of ours; ``frame_index`` and
            ``offset`` say where.
    """
    return decode_views([readonly_view(frame) for frame in frames])


def unpack(frame) -> Batch:
    """Split one batch frame into its payloads, without a copy.

    Args:
        frame: C-contiguous bytes-like, shape (nbytes,), uint8.

    Raises:
        ProtocolError: The frame is not one whole batch of ours; ``offset`` says where.
    """
    return decode_batch_view(readonly_view(frame))


# ---- encoding ------------------------------------------------------------------------------

cdef inline void write_header(
    uint8_t *out, int kind, int flags, uint64_t request_id, uint32_t n, uint64_t body_nbytes
) noexcept nogil:
    cdef uint16_t flags16 = <uint16_t>flags
    memcpy(out, <const char *>b"ZFST", 4)
    out[4] = VERSION
    out[5] = <uint8_t>kind
    memcpy(out + 6, &flags16, 2)
    memcpy(out + 8, &request_id, 8)
    memcpy(out + 16, &n, 4)
    memset(out + 20, 0, 4)
    memcpy(out + 24, &body_nbytes, 8)


cdef int init_frame(zmq_msg_t *frame, size_t nbytes) except -1:
    """Make a frame; 1."""
    if zf_zmq_msg_init_size(frame, nbytes) != 0:
        raise MemoryError(f"no memory for a frame of {nbytes} bytes")
    return 1


cdef bint send_frames(
    void *handle, zmq_msg_t *frames, Py_ssize_t n, Py_ssize_t *sent
) except -1:
    """Send the frames of one message. False when the socket would block: nothing was sent then.

    Args:
        sent: Out: how many frames are libzmq's now; the others are still to be closed.
    """
    cdef int rc, flags
    cdef Py_ssize_t i
    for i in range(n):
        flags = ZMQ_DONTWAIT | (ZMQ_SNDMORE if i < n - 1 else 0)
        while True:
            with nogil:
                rc = zf_zmq_msg_send(&frames[i], handle, flags)
            if rc >= 0:
                break
            if zf_zmq_errno() == EINTR:
                PyErr_CheckSignals()
                continue
            # libzmq takes or refuses a message at its first frame.
            if i == 0 and zf_zmq_errno() == EAGAIN:
                return False
            transport_error("sending failed")
        sent[0] = i + 1
    return True


cdef class Outgoing:
    """The frames of one message on their way out; closes what was not sent."""

    cdef zmq_msg_t *frames
    cdef Py_ssize_t n
    cdef Py_ssize_t sent

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.sent, self.n):
            zf_zmq_msg_close(&self.frames[i])
        PyMem_Free(self.frames)

    cdef zmq_msg_t *add_sized(self, size_t nbytes) except NULL:
        cdef zmq_msg_t *frame = &self.frames[self.n]
        self.n += init_frame(frame, nbytes)
        return frame

    cdef int add_copy(self, const void *data, size_t nbytes) except -1:
        cdef void *out = zf_zmq_msg_data(self.add_sized(nbytes))
        if nbytes >= INLINE_MAX:
            with nogil:
                memcpy(out, data, nbytes)
        elif nbytes:
            memcpy(out, data, nbytes)
        return 0

    cdef int add_lent(
        self, object buffer, zf_tracker *tracker, size_t position, size_t nbytes
    ) except -1:
        """A frame of ``nbytes`` from ``position`` on; the whole buffer is lent."""
        cdef zf_loan *loan
        zf_lend(buffer, tracker, &loan)
        if position > zf_loan_nbytes(loan) or nbytes > zf_loan_nbytes(loan) - position:
            zf_on_release(NULL, loan)
            raise BufferError("a buffer shrank while it was sent")
        if zf_zmq_msg_init_data(
            &self.frames[self.n], <char *>zf_loan_data(loan) + position, nbytes, zf_on_release, loan
        ) != 0:
            zf_on_release(NULL, loan)
            raise MemoryError("no memory for a frame")
        self.n += 1
        return 0

    cdef bint send(self, void *handle) except -1:
        """False when the socket would block; nothing was sent then."""
        return send_frames(handle, self.frames, self.n, &self.sent)


cdef Outgoing new_outgoing(Py_ssize_t capacity):
    cdef Outgoing outgoing = Outgoing.__new__(Outgoing)
    outgoing.frames = <zmq_msg_t *>PyMem_Malloc(capacity * sizeof(zmq_msg_t))
    if outgoing.frames is NULL:
        raise MemoryError
    return outgoing


def send_message(
    Socket socket not None,
    int kind,
    const uint8_t[::1] body not None,
    buffers=(),
    *,
    int flags=0,
    uint64_t request_id=0,
    bytes routing_id=None,
    bint copy=False,
    SendTracker tracker=None,
    size_t inline_max_nbytes=INLINE_MAX,
) -> bool:
    """Send one message without waiting.

    Args:
        socket: A pyzmq socket of the calling thread.
        kind: 0 to 255, what the message means to the layer above.
        body: The message's body, bytes-like; copied.
        buffers: C-contiguous bytes-like objects. Those below ``inline_max_nbytes`` are copied
            into the header frame; the others are lent to libzmq and read by its I/O thread:
            they must not change until ``tracker`` says so.
        routing_id: The peer, when ``socket`` is a ROUTER.
        copy: Copy large buffers as well: the caller may change them at once.
        tracker: Told when libzmq has let go of the lent buffers.

    Returns:
        False when the socket would block; nothing was sent then and no buffer is lent.

    Raises:
        TransportError: libzmq refused; ``errno`` says why (EHOSTUNREACH: no such peer).
        BufferError, ValueError: A buffer is not C-contiguous (which of them is its owner's choice).

    Threads: the socket's. GIL released while libzmq works.
    """
    cdef void *handle = handle_of(socket)
    cdef Py_ssize_t i, n, capacity
    cdef size_t nbytes, position, inline_nbytes = 0, total
    cdef uint64_t entry
    cdef uint8_t *head
    cdef Py_buffer view
    cdef zf_tracker *raw_tracker = NULL if tracker is None else tracker.tracker
    cdef Outgoing outgoing
    cdef list all_buffers = list(buffers)
    cdef list is_inline = []
    zf_drain()
    n = len(all_buffers)
    if n > BUFFERS_LIMIT:
        raise ConfigError(f"a message carries at most {BUFFERS_LIMIT} buffers, not {n}")
    capacity = 2
    total = HEADER + 8 * n + body.shape[0]
    for buffer in all_buffers:
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        nbytes = view.len
        PyBuffer_Release(&view)
        if nbytes < inline_max_nbytes and inline_nbytes + nbytes <= INLINE_TOTAL_MAX:
            inline_nbytes += nbytes
            total = aligned(total, ALIGN) + nbytes
            is_inline.append(True)
        else:
            capacity += 1
            is_inline.append(False)
    outgoing = new_outgoing(capacity)
    if routing_id is not None:
        outgoing.add_copy(PyBytes_AS_STRING(routing_id), PyBytes_GET_SIZE(routing_id))
    head = <uint8_t *>zf_zmq_msg_data(outgoing.add_sized(total))
    write_header(head, kind, flags, request_id, <uint32_t>n, body.shape[0])
    position = HEADER + 8 * n
    if body.shape[0]:
        memcpy(head + position, &body[0], body.shape[0])
    position += body.shape[0]
    for i in range(n):
        buffer = all_buffers[i]
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            entry = view.len
            if is_inline[i]:
                memset(head + position, 0, aligned(position, ALIGN) - position)
                position = aligned(position, ALIGN)
                if position + <size_t>view.len > total:
                    raise BufferError(f"buffer {i} grew while it was sent")
                if view.len:
                    memcpy(head + position, view.buf, view.len)
                position += view.len
                entry |= INLINE_BIT
            elif copy:
                outgoing.add_copy(view.buf, view.len)
            else:
                outgoing.add_lent(buffer, raw_tracker, 0, view.len)
        finally:
            PyBuffer_Release(&view)
        memcpy(head + HEADER + 8 * i, &entry, 8)
    if outgoing.send(handle):
        if capacity > 2 and not copy:
            ensure_reaper()
        return True
    return False


cdef inline Py_ssize_t payload_nbytes(object payload) except -1:
    cdef Py_buffer view
    cdef Py_ssize_t nbytes
    if PyBytes_CheckExact(payload):
        return PyBytes_GET_SIZE(payload)
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    nbytes = view.len
    PyBuffer_Release(&view)
    return nbytes


cdef inline Py_ssize_t copy_payload(
    uint8_t *out, Py_ssize_t room, object payload, Py_ssize_t index
) except -1:
    """Copy one payload to ``out``; its length."""
    cdef Py_buffer view
    cdef Py_ssize_t nbytes
    if PyBytes_CheckExact(payload):
        nbytes = PyBytes_GET_SIZE(payload)
        if nbytes > room:
            raise BufferError(f"payload {index} is another than the one that was counted")
        memcpy(out, PyBytes_AS_STRING(payload), nbytes)
        return nbytes
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        nbytes = view.len
        if nbytes > room:
            raise BufferError(f"payload {index} grew while it was packed")
        if nbytes:
            memcpy(out, view.buf, nbytes)
    finally:
        PyBuffer_Release(&view)
    return nbytes


cdef Py_ssize_t count_batch(
    list payloads, Py_ssize_t start, size_t max_nbytes, Py_ssize_t max_count, uint64_t *data_nbytes
) except -1:
    """How many payloads from ``start`` fill one batch: at least one, as many as fit."""
    cdef Py_ssize_t i, stop = min(<Py_ssize_t>len(payloads), start + max_count)
    cdef uint64_t total = 0, nbytes
    for i in range(start, stop):
        if i + PREFETCH < stop:
            prefetch(PyList_GET_ITEM(payloads, i + PREFETCH))
        nbytes = payload_nbytes(payloads[i])
        if total + nbytes > BATCH_LIMIT:
            if i == start:
                raise ConfigError(
                    f"payload {i} has {nbytes} bytes, a batch holds at most {BATCH_LIMIT}",
                    hint="send it by itself with send()",
                )
            stop = i
            break
        if i > start and total + nbytes > max_nbytes:
            stop = i
            break
        total += nbytes
    data_nbytes[0] = total
    return stop - start


cdef int fill_batch(
    uint8_t *out, list payloads, Py_ssize_t start, Py_ssize_t count, uint64_t data_nbytes,
    int kind, uint64_t request_id
) except -1:
    cdef size_t table = HEADER, position = aligned(HEADER + 4 * (count + 1), 8)
    cdef uint64_t done = 0
    cdef uint32_t offset = 0
    cdef Py_ssize_t i
    write_header(out, kind, BATCH_FLAG, request_id, <uint32_t>count, 0)
    memset(out + position - 4, 0, 4)
    memcpy(out + table, &offset, 4)
    for i in range(count):
        done += copy_payload(
            out + position + done, data_nbytes - done, payloads[start + i], start + i
        )
        offset = <uint32_t>done
        table += 4
        memcpy(out + table, &offset, 4)
    if done != data_nbytes:
        raise BufferError("a payload shrank while it was packed")
    return 0


def pack(payloads, *, int kind=0, uint64_t request_id=0) -> bytes:
    """Copy many payloads into the bytes of one batch frame.

    Args:
        payloads: Bytes-like objects, together at most 4 GiB.

    Example:
        >>> [bytes(p) for p in unpack(pack([b"a", b"bc"]))]
        [b'a', b'bc']
    """
    cdef list items = list(payloads)
    cdef uint64_t data_nbytes = 0
    cdef Py_ssize_t n = len(items)
    if n and count_batch(items, 0, BATCH_LIMIT, n, &data_nbytes) != n:
        raise ConfigError(
            f"{n} payloads do not fit one batch of {BATCH_LIMIT} bytes", hint="pack fewer"
        )
    cdef bytes out = PyBytes_FromStringAndSize(
        NULL, aligned(HEADER + 4 * (n + 1), 8) + data_nbytes
    )
    fill_batch(<uint8_t *>PyBytes_AS_STRING(out), items, 0, n, data_nbytes, kind, request_id)
    return out


def plan_batch(
    list payloads not None, Py_ssize_t start=0, *,
    size_t max_nbytes=BATCH_NBYTES, Py_ssize_t max_count=BATCH_COUNT,
) -> tuple[int, int]:
    """How many payloads from ``start`` on make the next batch, and how many bytes they have.

    Args:
        payloads: A list of bytes-like objects.
        max_nbytes, max_count: Where to end the batch. It holds at least one payload.
    """
    cdef uint64_t data_nbytes
    cdef Py_ssize_t count
    if start < 0 or start >= len(payloads):
        raise ConfigError(f"start {start} is outside a list of {len(payloads)} payloads")
    if max_count < 1:
        raise ConfigError(f"max_count must be at least 1, not {max_count}")
    count = count_batch(payloads, start, max_nbytes, max_count, &data_nbytes)
    return count, data_nbytes


# ---- what peers may send each other --------------------------------------------------------

cdef class Credit:
    """How much may be under way to one peer; both figures count from when the two met.

    Attributes:
        used: Cost of everything sent so far, in bytes.
        limit: What ``used`` may rise to; only ever raised.
    """

    cdef public uint64_t used
    cdef public uint64_t limit

    def allows(self, uint64_t cost) -> bool:
        """Whether a message of this cost may be sent now."""
        return self.used + cost <= self.limit


cdef class Account:
    """Counts of messages and of bytes between this side and one peer, since the two met.

    Args:
        routing_id: The peer's name on a ROUTER; None for a DEALER's only peer.
        credit: What may be under way to it.
        window_nbytes: What may be under way from it; None where memory is shared and nothing is.

    Attributes:
        sent, acknowledged: Values and batches to it, and how many of them it has read.
        received, received_acknowledged: Those from it that were read, and what it knows of that.
        gone: It has closed, or its connection was lost.
        landings: Where the bytes of streams from it go, by the streams' numbers; see `Landing`.

    Threads: one at a time.
    """

    cdef readonly bytes routing_id
    cdef readonly Credit credit
    cdef public dict landings
    cdef public uint64_t sent, acknowledged, received, received_acknowledged
    cdef public bint gone
    cdef uint64_t arrived, consumed, granted, window_nbytes
    cdef bint counts_bytes

    def __init__(self, bytes routing_id, Credit credit not None, window_nbytes=None):
        self.routing_id = routing_id
        self.credit = credit
        self.granted = credit.limit
        self.counts_bytes = window_nbytes is not None
        self.window_nbytes = window_nbytes or 0
        self.landings = {}

    def may_send(self, uint64_t nbytes) -> bool:
        """Whether the peer has room for a message with so many bytes of payload."""
        return has_room(self, nbytes)

    def count_sent(self, uint64_t nbytes) -> None:
        """A value or batch went out; it told the peer what was read."""
        count_sent(self, nbytes)

    def take_acknowledgement(self, uint64_t count, uint64_t limit) -> None:
        """The peer has read ``count`` messages and lets us send up to ``limit``."""
        self.acknowledged = max(self.acknowledged, count)
        self.credit.limit = max(self.credit.limit, limit)

    def count_arrived(self, uint64_t nbytes) -> None:
        """A message is here. Raises ProtocolError if it is more than the peer may send."""
        count_arrived(self, nbytes)

    def count_consumed(self, uint64_t nbytes) -> None:
        """A message that was here has been read, or copied to where it belongs, or dropped."""
        count_consumed(self, nbytes)

    def take(self, uint64_t count, uint64_t nbytes) -> None:
        """A value or batch is here; with it the peer said that it has read ``count`` messages."""
        self.acknowledged = max(self.acknowledged, count)
        count_arrived(self, nbytes)

    cdef inline bint grant_due(self) noexcept:
        return self.counts_bytes and (
            self.consumed + self.window_nbytes - self.granted >= self.window_nbytes // 4
        )

    cdef inline bint due(self) noexcept:
        return self.received > self.received_acknowledged or self.grant_due()

    cdef inline bint urgent(self) noexcept:
        return (
            self.received - self.received_acknowledged >= ACKNOWLEDGE_EVERY or self.grant_due()
        )

    @property
    def grant_is_due(self) -> bool:
        """Whether so much was consumed that the peer should hear of it before it runs dry."""
        return self.grant_due()

    @property
    def acknowledgement_is_due(self) -> bool:
        """Whether there is anything that the peer has not heard of."""
        return self.due()

    @property
    def acknowledgement_is_urgent(self) -> bool:
        """Whether the peer should hear of it though messages keep coming."""
        return self.urgent()

    def next_limit(self) -> int:
        """What the peer's credit may be raised to now."""
        if not self.counts_bytes:
            return self.granted
        return max(self.granted, self.consumed + self.window_nbytes)

    def acknowledged_up_to(self, uint64_t received, uint64_t limit) -> None:
        """The peer was told."""
        self.received_acknowledged = received
        self.granted = limit


# Functions, since a subclass could stand before a method: the quick way looks nothing up.

cdef inline bint has_room(Account peer, uint64_t nbytes) noexcept:
    return not peer.counts_bytes or peer.credit.used + nbytes + COST <= peer.credit.limit


cdef inline void count_sent(Account peer, uint64_t nbytes) noexcept:
    peer.sent += 1
    peer.received_acknowledged = peer.received
    if peer.counts_bytes:
        peer.credit.used += nbytes + COST


cdef inline bint may_arrive(Account peer, uint64_t nbytes) noexcept:
    return not peer.counts_bytes or peer.arrived + nbytes + COST <= peer.granted


cdef inline int count_arrived(Account peer, uint64_t nbytes) except -1:
    if peer.counts_bytes:
        peer.arrived += nbytes + COST
        if peer.arrived > peer.granted:
            raise ProtocolError(
                f"the peer sent {peer.arrived} bytes, {peer.granted} were granted",
                hint="the message was dropped",
            )
    return 0


cdef inline void count_consumed(Account peer, uint64_t nbytes) noexcept:
    if peer.counts_bytes:
        peer.consumed += nbytes + COST


cpdef bint send_value(
    Socket socket, Account peer, int kind, bytes body, int flags=0
) except -1:
    """Send a message without buffers to ``peer``, if it has room, and count it as one value.

    Returns:
        False when its credit is used up or the socket would block; nothing was sent then.

    Raises:
        TransportError: As ``send_message``.
    """
    cdef void *handle = handle_of(socket)
    cdef zmq_msg_t[2] frames
    cdef Py_ssize_t n = 0, sent = 0, i
    cdef size_t nbytes = PyBytes_GET_SIZE(body)
    cdef uint8_t *head
    if not has_room(peer, nbytes):
        return False
    try:
        if peer.routing_id is not None:
            n += init_frame(&frames[0], PyBytes_GET_SIZE(peer.routing_id))
            memcpy(
                zf_zmq_msg_data(&frames[0]),
                PyBytes_AS_STRING(peer.routing_id),
                PyBytes_GET_SIZE(peer.routing_id),
            )
        n += init_frame(&frames[n], HEADER + nbytes)
        head = <uint8_t *>zf_zmq_msg_data(&frames[n - 1])
        write_header(head, kind, flags, peer.received, 0, nbytes)
        memcpy(head + HEADER, PyBytes_AS_STRING(body), nbytes)
        if not send_frames(handle, frames, n, &sent):
            return False
    finally:
        for i in range(sent, n):
            zf_zmq_msg_close(&frames[i])
    count_sent(peer, nbytes)
    return True


def send_batch(
    Socket socket not None,
    Account peer not None,
    int kind,
    list payloads not None,
    Py_ssize_t start,
    Py_ssize_t count,
    uint64_t nbytes,
) -> bool:
    """Pack payloads into one frame and send it to ``peer``, if it has room, counted as one value.

    Args:
        payloads: A list of bytes-like objects; each is copied once, into the frame.
        start, count, nbytes: Which of them, and their bytes, as ``plan_batch`` said.

    Returns:
        False when the peer's credit is used up or the socket would block; nothing was sent then.

    Raises:
        TransportError: As ``send_message``.
        BufferError: The payloads are others than those that were planned.
    """
    cdef void *handle = handle_of(socket)
    cdef Outgoing outgoing
    if not has_room(peer, nbytes):
        return False
    if start < 0 or count < 0 or start + count > len(payloads):
        raise BufferError("the list of payloads became shorter while it was sent")
    outgoing = new_outgoing(2)
    if peer.routing_id is not None:
        outgoing.add_copy(PyBytes_AS_STRING(peer.routing_id), PyBytes_GET_SIZE(peer.routing_id))
    fill_batch(
        <uint8_t *>zf_zmq_msg_data(
            outgoing.add_sized(aligned(HEADER + 4 * (count + 1), 8) + nbytes)
        ),
        payloads, start, count, nbytes, kind, peer.received,
    )
    if not outgoing.send(handle):
        return False
    count_sent(peer, nbytes)
    return True


# ---- streams -------------------------------------------------------------------------------

cdef struct Cursor:
    Py_ssize_t index     # of a buffer
    uint64_t position    # in that buffer
    uint64_t start       # of that buffer in the block
    uint64_t offset      # in the stream


cdef uint64_t *copy_of_sizes(const uint8_t *sizes, Py_ssize_t n) except NULL:
    cdef uint64_t *copy = <uint64_t *>PyMem_Malloc(max(1, n) * sizeof(uint64_t))
    if copy is NULL:
        raise MemoryError
    if sizes is not NULL:
        memcpy(copy, sizes, n * sizeof(uint64_t))
    return copy


cdef class Landing:
    """Where the bytes of one stream go: its buffers, one after the other in one `Block`.

    `recv` copies chunks straight there when the peer's account knows the landing; `write` is for
    those that must be looked at first.

    Args:
        stream_id: The stream's number.
        sizes: Of its buffers, 8 bytes each, little-endian.
        flags: Of the message that opened it.

    Attributes:
        nbytes: Of all its buffers; 2**64 - 1 if they are more.
        received: How many of them have come.
        routing_id: The sender's, when `recv` last copied a chunk from a ROUTER; else None.

    Threads: one at a time.
    """

    cdef readonly uint64_t stream_id, nbytes
    cdef readonly int flags
    cdef readonly bytes routing_id
    cdef Block block
    cdef char *data  # the block's
    cdef uint64_t *sizes
    cdef Py_ssize_t n
    cdef Cursor next

    def __cinit__(self, uint64_t stream_id, const uint8_t[::1] sizes not None, int flags=0):
        cdef Py_ssize_t i
        self.stream_id = stream_id
        self.flags = flags
        self.n = sizes.shape[0] // 8
        self.sizes = copy_of_sizes(&sizes[0] if self.n else NULL, self.n)
        for i in range(self.n):
            if self.sizes[i] > <uint64_t>-1 - self.nbytes:
                self.nbytes = <uint64_t>-1
                break
            self.nbytes += self.sizes[i]

    def __dealloc__(self):
        PyMem_Free(self.sizes)

    @property
    def received(self) -> int:
        return self.next.offset

    @property
    def whole(self) -> bool:
        """Whether all has come."""
        return self.next.offset == self.nbytes

    def allocate(self) -> None:
        """Take memory for all of it; every buffer starts at a multiple of 64.

        Raises:
            MemoryError: There is not so much.
        """
        cdef uint64_t total = 0
        cdef Py_ssize_t i
        if self.nbytes > <uint64_t>1 << 62:
            raise MemoryError(f"no memory to receive a value of {self.nbytes} bytes")
        for i in range(self.n):
            total += aligned(self.sizes[i], ALIGN)
        self.block = Block(max(1, total))
        self.data = self.block.block.data

    cdef char *place(self, Cursor *at, uint64_t nbytes) noexcept nogil:
        """Where the bytes at ``at`` go, moved on past them; NULL if the buffer has less room."""
        while at.index < self.n and at.position == self.sizes[at.index]:
            at.start += aligned(self.sizes[at.index], ALIGN)
            at.index += 1
            at.position = 0
        if nbytes > self.left(at):
            return NULL
        at.position += nbytes
        at.offset += nbytes
        return self.data + at.start + at.position - nbytes

    cdef uint64_t left(self, const Cursor *at) noexcept nogil:
        return self.sizes[at.index] - at.position if at.index < self.n else 0

    def expect(self, uint64_t offset) -> None:
        """See that a chunk is the next one.

        Raises:
            ProtocolError: It is not, or the stream was not accepted yet.
        """
        if self.block is None:
            raise ProtocolError(f"a chunk of stream {self.stream_id} before it was accepted")
        if offset != self.next.offset:
            what = "is missing" if offset > self.next.offset else "came twice"
            raise ProtocolError(
                f"a chunk of stream {self.stream_id} {what}: this one starts at byte {offset}, "
                f"the next is {self.next.offset}",
                offset=32,
            )

    def write(self, pieces) -> None:
        """Copy the pieces of the next chunk, bytes-like, to their place; releases the GIL.

        Raises:
            ProtocolError: It is empty, or not cut where a buffer ends.
        """
        cdef Cursor at = self.next
        cdef const uint8_t[::1] piece
        cdef size_t nbytes
        cdef char *out
        if self.block is None:
            raise ProtocolError(f"a chunk of stream {self.stream_id} before it was accepted")
        for piece in pieces:
            nbytes = piece.shape[0]
            out = self.place(&at, nbytes)
            if out is NULL:
                raise ProtocolError(
                    f"a piece of {nbytes} bytes in stream {self.stream_id}, where "
                    f"{self.left(&at)} are left of the buffer"
                )
            if nbytes:
                with nogil:
                    memcpy(out, &piece[0], nbytes)
        if at.offset == self.next.offset:
            raise ProtocolError(f"a chunk of stream {self.stream_id} is empty")
        self.next = at

    def take(self) -> list[memoryview]:
        """The buffers, writable; the memory is theirs from now on.

        Raises:
            ProtocolError: Not all has come.
        """
        cdef uint64_t start = 0
        cdef Py_ssize_t i
        cdef list buffers = []
        if self.block is None or self.next.offset != self.nbytes:
            raise ProtocolError(
                f"{self.next.offset} of {self.nbytes} bytes of stream {self.stream_id} came"
            )
        whole = memoryview(self.block)
        self.block = None
        for i in range(self.n):
            buffers.append(whole[start:start + self.sizes[i]])
            start += aligned(self.sizes[i], ALIGN)
        return buffers

    def release(self) -> None:
        """Give the memory back."""
        self.block = None


cdef class Departure:
    """The bytes of one stream on their way out: its buffers in chunks of pieces.

    A chunk holds as many bytes as fit and as few pieces as they are made of.

    Args:
        stream_id: The stream's number.
        buffers: One-dimensional views of bytes.
        tracker: Told when libzmq has let go of them.
        max_nbytes, max_pieces: Of a chunk.

    Attributes:
        nbytes: Of all buffers.
        offset: How many of them went out.

    Threads: one at a time.
    """

    cdef readonly uint64_t stream_id, nbytes
    cdef readonly SendTracker tracker
    cdef readonly list buffers
    cdef uint64_t *sizes
    cdef Py_ssize_t n, max_pieces
    cdef uint64_t max_nbytes
    cdef Cursor next

    def __cinit__(
        self, uint64_t stream_id, list buffers not None, SendTracker tracker not None,
        uint64_t max_nbytes, Py_ssize_t max_pieces, **_,
    ):
        cdef Py_ssize_t i
        self.stream_id = stream_id
        self.buffers = buffers
        self.tracker = tracker
        self.max_nbytes = max_nbytes
        self.max_pieces = max_pieces
        self.n = len(buffers)
        self.sizes = copy_of_sizes(NULL, self.n)
        for i in range(self.n):
            self.sizes[i] = payload_nbytes(buffers[i])
            self.nbytes += self.sizes[i]

    def __dealloc__(self):
        PyMem_Free(self.sizes)

    @property
    def offset(self) -> int:
        return self.next.offset

    @property
    def cost(self) -> int:
        """What the next chunk takes from the credit, at most."""
        return self.next_cost()

    cdef inline uint64_t next_cost(self) noexcept:
        return min(self.max_nbytes, self.nbytes - self.next.offset) + COST

    cdef uint64_t cut(self, Cursor *at, uint64_t room) noexcept:
        """The next piece's length, at most ``room``, moved on past it; 0 at the end."""
        cdef uint64_t nbytes
        while at.index < self.n and at.position == self.sizes[at.index]:
            at.index += 1
            at.position = 0
        if at.index >= self.n:
            return 0
        nbytes = min(room, self.sizes[at.index] - at.position)
        at.position += nbytes
        at.offset += nbytes
        return nbytes

    def pieces(self) -> list[memoryview]:
        """The pieces of the next chunk. Then `advance` by what they have."""
        cdef Cursor at = self.next
        cdef list pieces = []
        cdef uint64_t nbytes
        while len(pieces) < self.max_pieces:
            nbytes = self.cut(&at, self.max_nbytes - (at.offset - self.next.offset))
            if not nbytes:
                break
            pieces.append(self.buffers[at.index][at.position - nbytes:at.position])
        return pieces

    def advance(self, uint64_t nbytes) -> None:
        """A chunk of ``nbytes`` went out."""
        cdef uint64_t cut
        while nbytes:
            cut = self.cut(&self.next, nbytes)
            if not cut:
                raise ValueError("more went out than there was")
            nbytes -= cut

    cdef Outgoing next_chunk(self, bytes routing_id, Cursor *after):
        """The next chunk as a message; ``after``: the cursor behind it."""
        cdef Cursor at = self.next
        cdef Py_ssize_t i, n = 0, n_frames = 2
        cdef size_t inline_nbytes = 0, position
        cdef uint64_t nbytes, entry
        cdef uint8_t *head
        cdef Py_buffer view
        cdef Outgoing outgoing
        while n < self.max_pieces:
            nbytes = self.cut(&at, self.max_nbytes - (at.offset - self.next.offset))
            if not nbytes:
                break
            n += 1
            if nbytes < INLINE_MAX:
                inline_nbytes = aligned(inline_nbytes, ALIGN) + nbytes
            else:
                n_frames += 1
        after[0] = at
        position = HEADER + 8 * <size_t>n + 8
        outgoing = new_outgoing(n_frames)
        if routing_id is not None:
            outgoing.add_copy(PyBytes_AS_STRING(routing_id), PyBytes_GET_SIZE(routing_id))
        head = <uint8_t *>zf_zmq_msg_data(outgoing.add_sized(
            aligned(position, ALIGN) + inline_nbytes if inline_nbytes else position
        ))
        write_header(head, CHUNK, 0, self.stream_id, <uint32_t>n, 8)
        memcpy(head + position - 8, &self.next.offset, 8)
        at = self.next
        for i in range(n):
            nbytes = entry = self.cut(&at, self.max_nbytes - (at.offset - self.next.offset))
            buffer = self.buffers[at.index]
            if nbytes < INLINE_MAX:
                entry |= INLINE_BIT
                memset(head + position, 0, aligned(position, ALIGN) - position)
                position = aligned(position, ALIGN)
                PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
                try:
                    if <uint64_t>view.len != self.sizes[at.index]:
                        raise BufferError("a buffer shrank while it was sent")
                    memcpy(head + position, <char *>view.buf + at.position - nbytes, nbytes)
                finally:
                    PyBuffer_Release(&view)
                position += nbytes
            else:
                outgoing.add_lent(buffer, self.tracker.tracker, at.position - nbytes, nbytes)
            memcpy(head + HEADER + 8 * i, &entry, 8)
        return outgoing

    def send(self, Socket socket not None, Account peer not None, Py_ssize_t max_count) -> bool:
        """Send the next chunks, without digests, as far as the peer's credit allows.

        Args:
            socket: A pyzmq socket of the calling thread.
            max_count: Chunks at most.

        Returns:
            False if the socket had no room for one. ``offset`` says what went out.

        Raises:
            TransportError: As ``send_message``.
        """
        cdef void *handle = handle_of(socket)
        cdef Outgoing outgoing
        cdef Cursor after
        zf_drain()
        ensure_reaper()
        while max_count > 0 and self.n and self.next.offset < self.nbytes:
            if peer.credit.used + self.next_cost() > peer.credit.limit:
                break
            outgoing = self.next_chunk(peer.routing_id, &after)
            if not outgoing.send(handle):
                return False
            peer.credit.used += after.offset - self.next.offset + COST
            self.next = after
            max_count -= 1
        return True

    def release(self) -> None:
        """Let go of the buffers: no more of it will go out."""
        self.buffers = []
        self.n = 0


# ---- receiving -----------------------------------------------------------------------------

cdef bint recv_frame(void *handle, zmq_msg_t *frame, int flags) except -1:
    """Receive one frame. False when none is there (or came in the socket's own time-out)."""
    cdef int rc
    while True:
        with nogil:
            rc = zf_zmq_msg_recv(frame, handle, flags)
        if rc >= 0:
            return True
        if zf_zmq_errno() == EAGAIN:
            return False
        if zf_zmq_errno() != EINTR:
            transport_error("receiving failed")
        PyErr_CheckSignals()


cdef Message small_message(zmq_msg_t *frame):
    """The message in a header frame without buffers, copied; None if it is not so simple."""
    cdef const uint8_t *data = <const uint8_t *>zf_zmq_msg_data(frame)
    cdef size_t nbytes = zf_zmq_msg_size(frame)
    cdef Header header
    cdef Message message
    if nbytes < HEADER or nbytes > INLINE_MAX:
        return None
    decode_header(data, nbytes, &header)
    if header.flags & BATCH_FLAG or header.n or header.body_nbytes != nbytes - HEADER:
        return None
    message = Message.__new__(Message)
    message.kind = header.kind
    message.flags = header.flags
    message.request_id = header.request_id
    message.nbytes = header.body_nbytes
    message.source_fd = -1 if header.body_nbytes else zf_zmq_msg_get(frame, ZMQ_SRCFD)
    message.body = PyBytes_FromStringAndSize(<const char *>data + HEADER, header.body_nbytes)
    message.buffers = []
    return message


cdef bint begins_plain_chunk(zmq_msg_t *frame) noexcept:
    """Whether it is the header frame of a chunk without flags, in this version of the format."""
    return (
        zf_zmq_msg_size(frame) >= HEADER + 8
        and memcmp(zf_zmq_msg_data(frame), b"ZFST\x02\x07\x00\x00", 8) == 0
    )


cdef Landing landing_of(zmq_msg_t *frame, Account peer, Cursor *after):
    """The stream whose next chunk a header frame begins; None if anything is not as it should be.

    Args:
        frame: As `begins_plain_chunk` has it.
        after: Out: the cursor behind the chunk.
    """
    cdef const uint8_t *head = <const uint8_t *>zf_zmq_msg_data(frame)
    cdef size_t nbytes = zf_zmq_msg_size(frame), position, i
    cdef uint64_t stream_id, n, body_nbytes, offset, entry, length
    cdef Landing landing
    memcpy(&stream_id, head + 8, 8)
    memcpy(&n, head + 16, 8)  # and the reserved bytes, which are zero
    memcpy(&body_nbytes, head + 24, 8)
    if body_nbytes != 8 or n > (nbytes - HEADER - 8) // 8:
        return None
    found = peer.landings.get(stream_id)
    if found is None:
        return None
    landing = <Landing?>found
    position = HEADER + 8 * n
    memcpy(&offset, head + position, 8)
    if landing.block is None or offset != landing.next.offset:
        return None
    position += 8
    after[0] = landing.next
    for i in range(n):
        memcpy(&entry, head + HEADER + 8 * i, 8)
        length = entry & ~INLINE_BIT
        if landing.place(after, length) is NULL:
            return None
        if entry & INLINE_BIT:
            position = aligned(position, ALIGN)
            if position > nbytes or length > nbytes - position:
                return None
            position += length
    if position != nbytes or after.offset == offset or not may_arrive(peer, after.offset - offset):
        return None
    return landing


cdef int land(void *handle, zmq_msg_t *frame, Landing landing) except -1:
    """Copy a chunk that begins with ``frame`` to its place, receiving its other frames.

    Raises:
        ProtocolError: They are not those that ``frame`` announces; all were taken off the socket.
    """
    cdef const uint8_t *head = <const uint8_t *>zf_zmq_msg_data(frame)
    cdef bint more = zf_zmq_msg_more(frame) != 0
    cdef Block _kept = landing.block  # whatever another thread does to the stream meanwhile
    cdef Cursor at = landing.next
    cdef Py_ssize_t frame_index = 0
    cdef size_t position
    cdef uint64_t length, have
    cdef uint32_t n, i
    cdef zmq_msg_t piece
    cdef char *out
    memcpy(&n, head + 16, 4)
    position = HEADER + 8 * <size_t>n + 8
    zf_zmq_msg_init(&piece)
    try:
        for i in range(n):
            memcpy(&length, head + HEADER + 8 * <size_t>i, 8)
            out = landing.place(&at, length & ~INLINE_BIT)
            if length & INLINE_BIT:
                length &= ~INLINE_BIT
                position = aligned(position, ALIGN)
                memcpy(out, head + position, length)
                position += length
                continue
            if not more or not recv_frame(handle, &piece, ZMQ_DONTWAIT):
                raise ProtocolError(
                    f"buffer {i} has no frame: the message has only {frame_index + 1}",
                    frame_index=frame_index + 1, offset=HEADER + 8 * i,
                )
            frame_index += 1
            more = zf_zmq_msg_more(&piece) != 0
            have = zf_zmq_msg_size(&piece)
            if have != length:
                raise ProtocolError(
                    f"frame {frame_index} has {have} bytes, announced {length}",
                    frame_index=frame_index, offset=HEADER + 8 * i,
                )
            with nogil:
                if landing.nbytes >= PAST_CACHE_MIN:
                    zf_copy_past_cache(out, <const char *>zf_zmq_msg_data(&piece), length)
                else:
                    memcpy(out, zf_zmq_msg_data(&piece), length)
        if more:
            raise ProtocolError("frames left over", frame_index=frame_index + 1)
    finally:
        while more and recv_frame(handle, &piece, ZMQ_DONTWAIT):
            more = zf_zmq_msg_more(&piece) != 0
        zf_zmq_msg_close(&piece)
    return 0


def recv(
    Socket socket not None, *, bint routed=False, bint wait=False, dict peers=None, admits=None
):
    """Receive one message or batch, or chunks of one stream.

    Args:
        socket: A pyzmq socket of the calling thread.
        routed: The socket is a ROUTER: the first frame is the sender's routing id.
        wait: Wait for the message, as long as the socket's ``RCVTIMEO`` says. One call of libzmq's
            that waits costs fewer system calls than ``poll`` and one that does not.
        peers: `Account` objects by routing id. Chunks without digest of streams that have a
            `Landing` there are copied to their place and counted, one after the other.
        admits: Called for each message, before anything of it is looked at, with its routing id,
            the ``User-Id`` that a ZAP handler gave its connection (else an empty string), that
            connection's descriptor (else -1), and the frame if it is one that holds a token, see
            ``zfast.security.token_messages``, else None. Unless it says True, the message is
            dropped.

    Returns:
        A ``Message`` or a ``Batch``, or None when nothing is there. A ``Landing`` when that
        is whole, when its sender should be granted more, or when no more has come. What was
        dropped counts as nothing: look again.

    Raises:
        ProtocolError: What came is not ours. The whole message was taken off the socket; its
            sender's routing id is the error's ``routing_id``.
        TransportError: libzmq failed; ``errno`` says why.
    """
    return recv_any(handle_of(socket), routed, 0 if wait else ZMQ_DONTWAIT, peers, admits)


cdef object recv_any(
    void *handle, bint routed, int flags, dict peers, object admits, Account likely=None
):
    """See `recv`.

    Args:
        likely: The peer whose routing id it probably is.
    """
    cdef zmq_msg_t received
    cdef int first_flags = flags
    cdef bint more = True
    cdef bytes routing_id = None
    cdef Landing landing = None, landed = None
    cdef Account peer
    cdef Cursor after
    cdef int64_t until_ms = 0
    zf_drain()
    zf_zmq_msg_init(&received)
    try:
        while True:
            flags = first_flags
            if routed:
                if not recv_frame(handle, &received, flags):
                    return landed
                routing_id = routing_id_in(&received, likely)
                more = zf_zmq_msg_more(&received) != 0
                flags = ZMQ_DONTWAIT  # a message comes whole
            if more and not recv_frame(handle, &received, flags):
                return landed
            if admits is not None and not may_come_in(handle, &received, routing_id, admits):
                return landed
            if not more or peers is None or not begins_plain_chunk(&received):
                return rest_of_message(handle, &received, more, routing_id)
            peer = peers.get(routing_id)
            landing = None if peer is None else landing_of(&received, peer, &after)
            if landing is None:
                return rest_of_message(handle, &received, more, routing_id)
            land(handle, &received, landing)
            count_arrived(peer, after.offset - landing.next.offset)
            count_consumed(peer, after.offset - landing.next.offset)
            landing.next = after
            landing.routing_id = routing_id
            if landing.next.offset == landing.nbytes or peer.grant_due():
                return landing
            landed = landing
            likely = peer
            if first_flags != ZMQ_DONTWAIT:
                if not until_ms:
                    until_ms = zf_now_ms() + PATIENCE_MS
                elif zf_now_ms() >= until_ms:
                    first_flags = ZMQ_DONTWAIT
    except ProtocolError as error:
        error.routing_id = routing_id
        raise
    finally:
        zf_zmq_msg_close(&received)


cdef bint may_come_in(
    void *handle, zmq_msg_t *received, bytes routing_id, object admits
) except -1:
    """Whether ``admits`` lets a message in; what is left of one that it does not is taken off."""
    cdef const char *user_id = zf_zmq_msg_gets(received, b"User-Id")
    cdef bint admitted = False
    try:
        admitted = admits(
            routing_id,
            "" if user_id is NULL else user_id.decode("ascii", "replace"),
            zf_zmq_msg_get(received, ZMQ_SRCFD),
            token_in(received),
        )
    finally:
        if not admitted:
            while zf_zmq_msg_more(received) and recv_frame(handle, received, ZMQ_DONTWAIT):
                pass
    return admitted


cdef bytes token_in(zmq_msg_t *received):
    """The frame, if it is one that a door takes for a token; else None."""
    cdef size_t nbytes = zf_zmq_msg_size(received)
    cdef const char *data = <const char *>zf_zmq_msg_data(received)
    if HEADER <= nbytes <= TOKEN_MAX and memcmp(data, b"ZFST\x02\xff\x00\x00", 8) == 0:
        return data[:nbytes]
    return None


cdef object rest_of_message(void *handle, zmq_msg_t *received, bint any_frame, bytes routing_id):
    """The message or batch that ``received`` begins, after its routing id.

    Args:
        any_frame: False if nothing came after the routing id.
    """
    cdef bint more = any_frame
    cdef Frame frame
    cdef list views = []
    cdef Message message
    cdef Batch batch
    while more:
        more = zf_zmq_msg_more(received) != 0
        if not more and not views:
            message = small_message(received)
            if message is not None:
                message.routing_id = routing_id
                return message
        frame = Frame.__new__(Frame)
        zf_zmq_msg_move(&frame.message, received)
        views.append(PyMemoryView_FromObject(frame))
        if more and not recv_frame(handle, received, ZMQ_DONTWAIT):
            return None
    if len(views) == 1 and len(views[0]) >= HEADER and views[0][6] & BATCH_FLAG:
        batch = decode_batch_view(views[0])
        batch.routing_id = routing_id
        return batch
    message = decode_views(views)
    message.routing_id = routing_id
    return message


cdef bytes routing_id_in(zmq_msg_t *frame, Account likely):
    cdef const char *data = <const char *>zf_zmq_msg_data(frame)
    cdef size_t nbytes = zf_zmq_msg_size(frame)
    if likely is not None and likely.routing_id is not None:
        if (
            <size_t>PyBytes_GET_SIZE(likely.routing_id) == nbytes
            and memcmp(PyBytes_AS_STRING(likely.routing_id), data, nbytes) == 0
        ):
            return likely.routing_id
    return PyBytes_FromStringAndSize(data, nbytes)


def poll(
    Socket socket not None, int events, timeout: float | None = None, Socket also=None
) -> int:
    """Wait until the socket can receive (``POLLIN``) or send (``POLLOUT``).

    Args:
        events: ``POLLIN``, ``POLLOUT`` or both.
        timeout: Seconds; None waits for ever.
        also: A second socket of the thread; the wait ends when it can receive, too.

    Returns:
        The events of ``socket`` that are ready, 0 if none is. Signals are handled meanwhile.
    """
    cdef zmq_pollitem_t[2] items
    cdef long left_ms
    cdef int rc, n_items = 1
    memset(items, 0, sizeof(items))
    items[0].socket = handle_of(socket)
    items[0].events = <short>events
    if also is not None:
        items[1].socket = handle_of(also)
        items[1].events = ZMQ_POLLIN
        n_items = 2
    deadline = None if timeout is None else monotonic() + timeout
    while True:
        if deadline is None:
            left_ms = -1
        else:
            left_ms = max(0, <long>((deadline - monotonic()) * 1000 + 0.999))
        with nogil:
            rc = zf_zmq_poll(items, n_items, left_ms)
        if rc >= 0:
            return items[0].revents
        if zf_zmq_errno() != EINTR:
            transport_error("polling failed")
        PyErr_CheckSignals()


# ---- the quick way -------------------------------------------------------------------------

NOTHING = object()

cdef enum:
    # Shorter time-outs do without: a waiting receive may take the socket's whole time-out.
    QUICK_MIN_MS = 100
    QUICK_MAX_NBYTES = 4096
    QUICK_MAX_ITEMS = 64


cdef inline bint is_plain(object value) noexcept:
    """Whether pickle alone knows all about it, and it is small."""
    cls = type(value)
    if cls is str:
        return len(<str>value) <= QUICK_MAX_NBYTES
    if cls is bytes:
        return PyBytes_GET_SIZE(value) < QUICK_MAX_NBYTES
    if cls is int:
        return True
    return cls is float or cls is bool or value is None


cdef bint pickles_plainly(object value) except -1:
    if is_plain(value):
        return True
    if type(value) is not dict or len(<dict>value) > QUICK_MAX_ITEMS:
        return False
    for key, item in (<dict>value).items():
        if type(key) is not str or not is_plain(item):
            return False
    return True


cdef bint may_take_long(object timeout) except -1:
    """Whether a time-out is right, and long enough for the quick way."""
    if timeout is None:
        return True
    if type(timeout) is float or type(timeout) is int:
        return timeout * 1000 >= QUICK_MIN_MS
    return False


cdef inline double now_s() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


@cython.final
cdef class Turn:
    """A link's socket, for one thread at a time.

    The user's thread comes by `enter`; a background thread may come between two calls, by
    `try_between`, and is waited for.

    Attributes:
        fresh: What was last seen of the peers is good enough to send something.
    """

    cdef PyThread_type_lock io
    cdef bint in_use
    cdef double fresh_until

    def __cinit__(self):
        self.fresh_until = 0
        self.io = PyThread_allocate_lock()
        if self.io is NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.io is not NULL:
            PyThread_free_lock(self.io)

    cdef inline bint try_enter(self) noexcept:
        if self.in_use or not PyThread_acquire_lock(self.io, NOWAIT_LOCK):
            return False
        self.in_use = True
        return True

    def enter(self) -> bool:
        """False if another thread is in a call; waits for a background thread."""
        if self.in_use:
            return False
        self.in_use = True
        if not PyThread_acquire_lock(self.io, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(self.io, WAIT_LOCK)
        return True

    cpdef leave(self):
        """End the call."""
        self.in_use = False
        PyThread_release_lock(self.io)

    def try_between(self) -> bool:
        """Come between two calls, unless one is under way. Then `end_between`."""
        return PyThread_acquire_lock(self.io, NOWAIT_LOCK) != 0

    def end_between(self) -> None:
        """Let the next call begin."""
        PyThread_release_lock(self.io)

    @property
    def fresh(self) -> bool:
        return self.is_fresh()

    cdef inline bint is_fresh(self) noexcept:
        return now_s() < self.fresh_until

    def stay_fresh(self, double seconds) -> None:
        """The peers were seen just now."""
        self.fresh_until = now_s() + seconds


@cython.final
cdef class Lane:
    """The quick way through a link for a lone message, in one call, while nothing else is to do.

    Every function says by its result when it did nothing because something else is to be done
    first – a stream to be sent, a message in the queue – or because it does not know the value.
    Then the link's own way is right, and raises what there is to raise.

    Args:
        socket: Its ``RCVTIMEO`` bounds what `recv` may wait.
        routed: It is a ROUTER.
        peers: The link's peers, by routing id.
        inbox: Its ``queue`` is what came and was not taken yet; ``put`` takes what is no value.
        outbox: ``idle`` says that it has nothing to send; ``acknowledge`` tells a peer.
        turn: Who may use the socket.
        value_kind, batch_kind: The messages that `recv` knows.
        look: Called before a message is sent when what is known of the peers is not fresh.
        decode: Called with a message and ``copy``: its value.
        admits: As for `recv`.
        acknowledge_later: Called when a peer should be told soon of what was read, once until
            ``reminded`` is cleared.
    """

    cdef Socket socket
    cdef bint routed
    cdef dict peers
    cdef object queue, inbox, outbox, look, decode, acknowledge_later, admits, dumps
    cdef Turn turn
    cdef int value_kind, batch_kind
    cdef public bint reminded

    def __init__(
        self, Socket socket not None, bint routed, dict peers not None, inbox, outbox,
        Turn turn not None, *, int value_kind, int batch_kind, look, decode, acknowledge_later,
        admits=None,
    ):
        self.socket = socket
        self.routed = routed
        self.peers = peers
        self.queue = inbox.queue
        self.inbox = inbox
        self.outbox = outbox
        self.turn = turn
        self.value_kind = value_kind
        self.batch_kind = batch_kind
        self.look = look
        self.decode = decode
        self.acknowledge_later = acknowledge_later
        self.admits = admits
        self.dumps = dumps

    cdef Account only_peer(self):
        cdef Py_ssize_t position = 0
        cdef PyObject *peer = NULL
        if len(self.peers) == 1 and PyDict_Next(self.peers, &position, NULL, &peer):
            return <Account?><object>peer
        return None

    cdef int count(self, Account peer, uint64_t acknowledged, uint64_t nbytes) except -1:
        peer.acknowledged = max(peer.acknowledged, acknowledged)
        count_arrived(peer, nbytes)
        count_consumed(peer, nbytes)
        peer.received += 1
        if peer.urgent():
            self.outbox.acknowledge(peer)
        if not self.reminded and peer.due():
            self.reminded = True
            self.acknowledge_later()
        return 0

    def send(self, value, timeout) -> bool:
        """Send a small plain value to the only peer, if there is room. False: nothing was sent.

        Raises:
            ChannelClosedError: The peer has gone.
        """
        cdef Account peer
        if self.socket._closed or not may_take_long(timeout) or not pickles_plainly(value):
            return False
        if not self.turn.try_enter():
            return False
        try:
            if not self.outbox.idle:
                return False
            if not self.turn.is_fresh():
                self.look()
            peer = self.only_peer()
            if peer is None or peer.gone or not self.turn.is_fresh():
                return False
            if type(value) is bytes:
                return send_value(self.socket, peer, self.value_kind, <bytes>value, BYTES_FLAG)
            return send_value(self.socket, peer, self.value_kind, self.dumps(value, 5))
        except TransportError:
            return False  # the link's own way finds out which, and what to do
        finally:
            self.turn.leave()

    def recv(self, timeout, copy=False):
        """The next value, or a batch, counted as read; `NOTHING` if there is none yet.

        Raises:
            ProtocolError: That is what came.
            CodecError: A value came that cannot be decoded here.
        """
        content = self.take(self.value_kind, timeout)
        if content is None:
            return NOTHING
        if type(content) is Batch:
            return content
        if (<Message>content).flags & BYTES_FLAG and type((<Message>content).body) is bytes:
            return (<Message>content).body
        return self.decode(content, copy)

    def recv_batch(self, timeout) -> Batch | None:
        """The next batch, counted as read; None if there is none yet, or a value comes first.

        Raises:
            ProtocolError: That is what came.
        """
        return self.take(-1, timeout)

    cdef object take(self, int kind, timeout):
        cdef Account peer
        cdef Message message
        cdef Batch batch
        cdef int flags = ZMQ_DONTWAIT
        if self.socket._closed or not may_take_long(timeout) or not self.turn.try_enter():
            return None
        try:
            if not self.outbox.idle or len(self.queue):
                return None
            peer = self.only_peer()
            if peer is not None and not peer.gone and not peer.due():
                flags = 0  # nobody need be told anything before a wait
            content = recv_any(
                handle_of(self.socket), self.routed, flags, self.peers, self.admits, peer
            )
            if content is None:
                return None
            if type(content) is Message:
                message = <Message>content
                peer = self.peers.get(message.routing_id)
                if peer is not None and message.kind == kind:
                    self.count(peer, message.request_id, message.nbytes)
                    return message
            elif type(content) is Batch:
                batch = <Batch>content
                peer = self.peers.get(batch.routing_id)
                if peer is not None and batch.kind == self.batch_kind:
                    self.count(peer, batch.request_id, batch.nbytes)
                    return batch
            self.inbox.put(content)
            return None
        finally:
            self.turn.leave()
