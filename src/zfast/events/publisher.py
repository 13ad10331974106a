"""Events out of this process: a call that costs microseconds, and two threads behind it.

::

    publish ── lock ──▶ PUB ═ inproc ═▶ XSUB │ forwarder │ XPUB ═▶ subscribers
                 │
                 └ memory ◀── desk: Hello, Ping, Ask ◀═ ROUTER ═ subscribers

What subscribers cost is paid by the forwarder, which is libzmq's own and needs no GIL. What one
does not read is dropped by libzmq once its queue is full; the counts in each event tell it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from pathlib import Path

import zmq

from zfast.events.arrivals import CONTROL_NAME, EVENTS_NAME, announce
from zfast.events.desk import ControlDesk
from zfast.events.event import Published
from zfast.events.frames import EventFrame, encode_body, pack_frame
from zfast.events.memory import EventMemory
from zfast.events.messages import Welcome
from zfast.events.relay_link import RelayLink
from zfast.events.runtime_folder import PUBLISHER, own_folder, user_folder
from zfast.events.sockets import bind_socket, client_security, open_socket
from zfast.events.topics import make_topic
from zfast.security.client_security import ClientSecurity

#: Events on their way from ``publish`` to the forwarder, which takes some 2 µs for each.
PIPE_HWM = 100_000
#: How long ``close`` waits for subscribers to have everything.
CLOSE_S = 1.0
_OTHER_FLOW = _OTHER_STATE = "(other)"


class Publisher:
    """Publishes states to whoever subscribes, in the user's folder and through a relay.

    Args:
        folder: The folder to be found in, instead of the user's own.
        relay: The endpoint of a relay to publish through as well.
        security: Keys for a relay on tcp; None is this host's own, see docs/security.md.
        insecure: Allow a relay on tcp of the loopback interface that nothing guards.

    Raises:
        ConfigError, TransportError: Its sockets cannot be opened; the relay takes keys, and there
            are none. That the relay refuses ours is logged.

    Threads: any. In a forked child, ``publish`` and ``close`` do nothing.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        relay: str | None = None,
        security: ClientSecurity | None = None,
        insecure: bool = False,
    ) -> None:
        self.id = uuid.uuid4().bytes
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._memory = EventMemory()
        self._topics: dict[tuple[str, str, str, str], bytes] = {}
        if relay:
            security = client_security(relay, security, insecure=insecure)
        self._parent = folder or user_folder()
        with contextlib.ExitStack() as undo:
            self._folder = own_folder(PUBLISHER, self._parent)
            undo.callback(self._folder.remove)
            self._events = undo.enter_context(open_socket(zmq.XPUB))
            events_endpoint = bind_socket(self._events, self._endpoint(EVENTS_NAME))
            self._control = undo.enter_context(open_socket(zmq.ROUTER))
            self.endpoint = bind_socket(self._control, self._endpoint(CONTROL_NAME))
            self._relay = (
                RelayLink(self.id, relay, self._memory, self._lock, security, insecure)
                if relay
                else None
            )
            if self._relay is not None:
                undo.callback(self._relay.close)
                self._relay.connect_events(self._events)
            self._open_pipe(undo)
            undo.pop_all()
        welcome = Welcome(source=self.id, events=events_endpoint)
        self._desk = ControlDesk(
            self._control, welcome, {self.id: self._memory}, self._lock, self._send
        )
        self._served = threading.Event()
        self._threads = [
            threading.Thread(target=self._forward, name="zfast-events-forward", daemon=True),
            threading.Thread(target=self._serve, name="zfast-events-desk", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self._desk.expected |= announce(self.endpoint, self._parent)

    def publish(self, event: Published) -> None:
        """Publish one event; returns at once, and never waits for a subscriber.

        ``published_ns`` and ``monotonic_ns`` are set here.
        """
        if self._closed or os.getpid() != self._pid:
            return
        event.published_ns = time.time_ns()
        event.monotonic_ns = time.monotonic_ns()
        body = encode_body(event)
        with self._lock:
            topic = self._topic(event)
            counts = self._memory.advance(topic)
            frame = pack_frame(topic, self.id, counts, body)
            self._memory.keep(
                EventFrame(topic, self.id, counts, body, frame),
                event.run_id,
                final=event.is_final,
            )
            with contextlib.suppress(zmq.ZMQError):  # it was closed in this moment
                self._send(frame)

    def wait_heard(self, timeout_s: float) -> bool:
        """Wait until the subscribers of this host that were there first hear what is published.

        Returns:
            False if one has not come in time.
        """
        deadline = time.monotonic() + timeout_s
        while not self._desk.is_heard:
            self._served.clear()
            if not self._desk.is_heard and not self._served.wait(deadline - time.monotonic()):
                return False
        return True

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Publish no more; wait until living subscribers have everything, or for the time given."""
        if os.getpid() != self._pid:
            self._folder.abandon()
            return
        with self._lock:
            if self._closed:
                return
            self._close_s = time.monotonic() + timeout_s
            # First, for the desk closes the socket as soon as it sees that we are closed.
            self._wake.send(b"", zmq.DONTWAIT)
            self._closed = True
        for thread in reversed(self._threads):
            thread.join()
        announce(self.endpoint, self._parent, leaving=True)
        self._folder.remove()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _endpoint(self, name: str) -> str:
        return f"ipc://{self._folder.path / name}"

    def _topic(self, event: Published) -> bytes:
        key = (event.environment, event.kind, event.flow_name, event.state_name)
        topic = self._topics.get(key)
        if topic is None:
            topic = make_topic(key)
            if not self._memory.knows(topic):
                return make_topic((event.environment, event.kind, _OTHER_FLOW, _OTHER_STATE))
            self._topics[key] = topic
        return topic

    def _send(self, frame: bytes) -> None:
        # Under the lock, which is the fence that a socket needs between threads. PUB never waits.
        self._pipe.send(frame, zmq.DONTWAIT)

    def _open_pipe(self, undo: contextlib.ExitStack) -> None:
        name = f"inproc://zfast-events-{self.id.hex()}"
        self._pipe = undo.enter_context(open_socket(zmq.PUB))
        self._pipe.sndhwm = PIPE_HWM
        self._pipe.bind(name)
        self._outlet = undo.enter_context(open_socket(zmq.XSUB))
        self._outlet.rcvhwm = PIPE_HWM
        self._outlet.connect(name)
        self._steering = undo.enter_context(open_socket(zmq.PAIR))
        self._steering.bind(f"{name}-steer")
        self._steered = undo.enter_context(open_socket(zmq.PAIR))
        self._steered.connect(f"{name}-steer")
        self._wake = undo.enter_context(open_socket(zmq.PAIR))
        self._wake.bind(f"{name}-wake")
        self._woken = undo.enter_context(open_socket(zmq.PAIR))
        self._woken.connect(f"{name}-wake")

    def _forward(self) -> None:
        try:
            zmq.proxy_steerable(self._outlet, self._events, None, self._steered)
        except zmq.ZMQError:
            pass  # the context is being ended
        for socket in (self._outlet, self._events, self._steered):
            socket.close(0)

    def _serve(self) -> None:
        try:
            self._serve_until_closed()
        except zmq.ContextTerminated:
            pass
        for socket in (self._control, self._woken, self._wake):
            socket.close(0)
        with contextlib.suppress(zmq.ZMQError):
            self._steering.send(b"TERMINATE")
        self._threads[0].join()
        self._steering.close(0)
        if self._relay is not None:
            self._relay.close()
        with self._lock:
            self._pipe.close(0)

    def _serve_until_closed(self) -> None:
        poller = zmq.Poller()
        poller.register(self._control, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        if self._relay is not None:
            poller.register(self._relay.control, zmq.POLLIN)
        while not self._closed:
            poller.poll(self._relay.beat() if self._relay is not None else None)
            self._desk.serve()
            self._served.set()
            if self._relay is not None:
                self._relay.read()
        self._desk.end()
        if self._relay is not None:
            self._relay.leave()
        poller.unregister(self._woken)
        while time.monotonic() < self._close_s and (
            self._desk.waited_for or (self._relay is not None and self._relay.waited_for)
        ):
            poller.poll(20)
            self._desk.serve()
            if self._relay is not None:
                self._relay.read()
