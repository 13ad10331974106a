"""A foreman's data endpoint: other hosts fetch from it what lies in this host's shared memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import zmq

from zfast import _core
from zfast.addresses import SocketFile, parse_endpoint
from zfast.context import process_context
from zfast.errors import AccessDeniedError, ProtocolError, TransportError, ZfastError
from zfast.runner.control import ControlMessage
from zfast.runner.data_protocol import DATA_MESSAGES, WINDOW, Ask, Missing, Piece
from zfast.security.curve_keys import KeyPair, PublicKey
from zfast.security.door import Door
from zfast.security.limits import Limits
from zfast.security.roles import Role, Verb
from zfast.security.same_user import bind_to_this_user
from zfast.security.server_security import ServerSecurity
from zfast.sharing.descriptor import Descriptor

logger = logging.getLogger("zfast.worker")

#: Questions that are answered before anything else has its turn.
BURST = 256
#: The longest frame of a question, with room to spare: all that a peer may make us allocate.
QUESTION_NBYTES = 4096
#: Answers that wait for one peer. It asks again for those that found no room.
ANSWERS_HWM = 2 * WINDOW


class DataServer:
    """Answers each question from memory, and remembers nothing of whoever asked.

    Args:
        url: ``tcp://host:port``, the port ``*`` for any, or ``ipc:///path``.
        pair: This endpoint's keys, which tcp needs.
        read: Gives the bytes of a descriptor, all of them, or None if they are not here. They
            must not change, and stay valid as long as the view lives.
        poller: Woken when there is something to serve.

    Attributes:
        endpoint: With the port that the system chose.
        public_key: In Z85; empty where ipc needs none.

    Raises:
        ConfigError: The endpoint is malformed or unprotected.
        TransportError: It cannot be bound; ``errno`` says why.

    Lifetime: views are kept until libzmq has sent them, and end on another thread. What a peer
    does not read holds at most ``ANSWERS_HWM`` of them.

    Threads: the poller's.
    """

    def __init__(
        self,
        url: str,
        pair: KeyPair | None,
        read: Callable[[Descriptor], memoryview | None],
        poller: zmq.Poller,
    ) -> None:
        endpoint = parse_endpoint(url, guarded=pair is not None, between_processes=True)
        self._read = read
        self._poller = poller
        self._security: ServerSecurity | None = None
        self._door: Door | None = None
        self._file: SocketFile | None = None
        self._keys: frozenset[str] = frozenset()
        self.public_key = ""
        self._socket = process_context().socket(zmq.ROUTER)
        self._socket.router_mandatory = True  # to be told of a peer that does not read
        # From the start: else a peer that goes as the socket is closed leaves its answers, and what
        # they hold, in libzmq for ever.
        self._socket.linger = 0
        self._socket.sndhwm = ANSWERS_HWM
        self._socket.maxmsgsize = QUESTION_NBYTES
        poller.register(self._socket, zmq.POLLIN)
        try:
            if endpoint.scheme == "tcp" and pair is not None:
                limits = Limits(frame_nbytes=QUESTION_NBYTES)
                self._security = ServerSecurity.from_keys(pair, [], limits=limits)
                self._door = self._security.guard(self._socket, verbs=[Verb.CLAIM])
                self.endpoint = self._door.bind(str(endpoint))
                self.public_key = pair.public.z85
            else:
                self.endpoint, self._file = bind_to_this_user(self._socket, endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise TransportError(
                f"other hosts cannot fetch data at {endpoint}: {error.strerror}", errno=error.errno
            ) from error
        except BaseException:
            self.close()
            raise

    def admit(self, keys: Iterable[str]) -> None:
        """Let in the holders of these public keys, in Z85, and nobody else from now on.

        Connections of others are cut. Over ipc it says nothing: the system's users decide.

        Raises:
            ConfigError: One is not a key; who may come in stays as it was.
        """
        wanted = frozenset(keys)
        if self._security is not None and wanted != self._keys:
            self._security.replace_clients((PublicKey(key), Role.WORKER) for key in wanted)
            self._keys = wanted

    def serve(self) -> None:
        """Answer what was asked; some of it, others have their turn too."""
        for _ in range(BURST):
            try:
                received = _core.recv(
                    self._socket, routed=True, admits=self._admits if self._door else None
                )
                if received is None:
                    return
                self._answer(received)
            except ProtocolError as error:
                logger.warning("a question for data was dropped: %s", error)

    def close(self) -> None:
        """Close it; what is not sent yet will not be."""
        if self._door is not None:
            self._door.close()
        if self._security is not None:
            self._security.close()
        self._poller.unregister(self._socket)
        self._socket.close(linger=0)
        if self._file is not None:
            self._file.remove()

    def _admits(self, route: bytes | None, user_id: str, fd: int, token: bytes | None) -> bool:
        assert self._door is not None
        try:
            self._door.authorise(user_id, Verb.CLAIM, fd=fd)
        except AccessDeniedError:  # its connection is being cut
            return False
        return True

    def _answer(self, received: _core.Message | _core.Batch) -> None:
        if isinstance(received, _core.Batch):
            raise ProtocolError("a batch")
        ask = DATA_MESSAGES.decode(received.kind, received.body)
        if not isinstance(ask, Ask) or received.buffers:
            raise ProtocolError(f"unexpected {type(ask).__name__}")
        ask.check()
        data = self._find(ask.descriptor)
        if data is None:
            self._send(received, Missing(), [])
        else:
            self._send(received, Piece(), [data[ask.offset : ask.offset + ask.nbytes]])

    def _find(self, descriptor: Descriptor) -> memoryview | None:
        try:
            return self._read(descriptor)
        except (ZfastError, OSError) as error:  # such as too many open files
            logger.warning("%s, which was asked for, cannot be read: %s", descriptor, error)
            return None

    def _send(
        self, question: _core.Message, answer: ControlMessage, buffers: list[memoryview]
    ) -> None:
        kind, body = DATA_MESSAGES.encode(answer)
        try:
            _core.send_message(
                self._socket,
                kind,
                body,
                buffers,
                request_id=question.request_id,
                routing_id=question.routing_id,
            )
        except TransportError:
            pass  # it has gone
