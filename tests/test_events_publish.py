"""Publishers, relays and subscribers, in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
import zmq

import zfast
from events_process import make_event
from tcp_proxy import Proxy
from zfast.context import process_context
from zfast.errors import ConfigError, RecvTimeoutError, TransportError
from zfast.events.desk import PEER_S, ControlDesk
from zfast.events.event import Event, Gap, Input, PublisherJoined, PublisherLeft, StateEvent
from zfast.events.frames import EventFrame, encode_body, pack_frame
from zfast.events.memory import EventMemory
from zfast.events.messages import (
    Ask,
    Beat,
    BeatHeard,
    Hello,
    History,
    Welcome,
    decode_message,
    encode_message,
)
from zfast.events.publisher import Publisher
from zfast.events.reactions import on_event, wait_for_state, when
from zfast.events.relay import Relay
from zfast.events.relay_link import relay_endpoints
from zfast.events.subscription import Subscription
from zfast.events.topics import make_topic
from zfast.owned_folder import owned_folders

SCRIPT = Path(__file__).with_name("events_process.py")


@pytest.fixture
def folder(short_folder: Path) -> Path:
    return short_folder


class Remote:
    """A publisher in another process."""

    def __init__(self, folder: Path, relay: str | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), relay or "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.id = self._read()

    def publish(
        self, first: int, last: int, *, flow: str = "etl", state: str = "Running", rate: int = 0
    ) -> None:
        """Have it publish; does not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{flow} {state} {first} {last} {rate}\n")
        self._process.stdin.flush()

    def published(self) -> None:
        """Wait until it has."""
        assert self._read() == "published"

    def end(self) -> None:
        """Let it end as it should."""
        self._process.communicate(timeout=20)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate(timeout=20)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Remote]]:
    started: list[Remote] = []

    def start_one(relay: str | None = None) -> Remote:
        started.append(Remote(folder, relay))
        return started[-1]

    yield start_one
    for remote in started:
        remote.kill()


def take(events: Subscription, n: int, timeout: float = 20.0) -> list[Event]:
    return [events.recv(timeout) for _ in range(n)]


def numbers(events: list[Event]) -> list[int]:
    return [int(e.run_id.removeprefix("run-")) for e in events if isinstance(e, StateEvent)]


# ---- publishers of a user on a host ------------------------------------------------------


def test_every_event_of_a_publisher_that_comes_later(
    folder: Path, start: Callable[..., Remote]
) -> None:
    with Subscription(folder=folder, membership=True) as events:
        remote = start()
        remote.publish(0, 1000)
        ending = threading.Thread(target=remote.end)
        ending.start()
        got = take(events, 1002)
        ending.join()
    assert isinstance(got[0], PublisherJoined)
    assert isinstance(got[-1], PublisherLeft)
    assert numbers(got) == list(range(1000))
    assert [e.sequence for e in got if isinstance(e, StateEvent)] == list(range(1, 1001))


def test_a_publisher_that_came_and_went_while_nobody_read_is_told(
    folder: Path, start: Callable[..., Remote]
) -> None:
    with Subscription(folder=folder) as events:
        remote = start()
        remote.publish(0, 3)
        remote.end()  # it waits a second for its subscribers
        assert events.recv(20) == Gap(publisher="", lost=0)


def test_who_comes_late_gets_the_truth_and_then_everything(
    folder: Path, start: Callable[..., Remote]
) -> None:
    remote = start()
    remote.publish(0, 5, state="Pending")
    remote.publish(0, 3, state="Running")
    remote.publish(0, 1, state="Completed")
    for _ in range(3):
        remote.published()
    with Subscription(folder=folder) as events:
        got = take(events, 5)
        truth = {e.run_id: e.state_name for e in got if isinstance(e, StateEvent)}
        assert truth == {
            "run-0": "Completed", "run-1": "Running", "run-2": "Running",
            "run-3": "Pending", "run-4": "Pending",
        }  # fmt: skip
        assert all(isinstance(e, StateEvent) and e.replayed for e in got)
        remote.publish(5, 8)
        live = take(events, 3)
    assert numbers(live) == [5, 6, 7]
    assert not any(isinstance(e, StateEvent) and e.replayed for e in live)


def test_several_publishers_without_a_name_or_port(
    folder: Path, start: Callable[..., Remote]
) -> None:
    remotes = [start() for _ in range(3)]
    with Subscription(folder=folder) as events:
        events.wait_joined()
        for remote in remotes:
            remote.publish(0, 100)
        got = take(events, 300)
    for remote in remotes:
        mine = [e for e in got if isinstance(e, StateEvent) and e.publisher == remote.id]
        assert numbers(list(mine)) == list(range(100))


@pytest.mark.parametrize("finds_many", [True, False])
def test_all_are_found_that_came_while_the_subscriber_was_busy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, finds_many: bool
) -> None:
    """More of them than the kernel keeps datagrams: it looks at once, or every few seconds."""
    monkeypatch.setattr("zfast.events.arrivals.LOOK_S", 1000.0 if finds_many else 0.1)
    monkeypatch.setattr("zfast.events.arrivals.MANY_DATAGRAMS", 8 if finds_many else 1000)
    n = 2 * int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    if n > 64:
        pytest.skip("this kernel keeps very many datagrams")
    busy, came = threading.Event(), threading.Event()
    got: list[str] = []

    def call(event: Event) -> None:
        assert isinstance(event, StateEvent)
        busy.set()
        came.wait(20)
        got.append(event.run_id)
        if len(got) == n + 1:
            done.set()

    done = threading.Event()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(Publisher(folder=folder))
        stack.enter_context(on_event(call, folder=folder)).wait_joined()
        first.publish(make_event(0))
        assert busy.wait(10)
        for number in range(1, n + 1):
            stack.enter_context(Publisher(folder=folder)).publish(make_event(number))
        came.set()
        assert done.wait(10)
    assert sorted(got) == sorted(f"run-{number}" for number in range(n + 1))


def test_who_has_ended_is_not_found_again_in_the_folder_it_left(
    folder: Path, start: Callable[..., Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfast.events.arrivals.LOOK_S", 0.02)
    monkeypatch.setattr("zfast.events.feed.OWNER_S", 0.2)
    remote = start()
    with Subscription(folder=folder, membership=True) as events:
        events.wait_joined()
        assert isinstance(events.recv(10), PublisherJoined)
        remote.kill()
        assert isinstance(events.recv(10), PublisherLeft)
        assert owned_folders(folder, "p")
        with pytest.raises(RecvTimeoutError):
            events.recv(0.6)


def test_a_publisher_may_wait_until_those_who_were_there_hear_it(folder: Path) -> None:
    with Subscription(folder=folder) as first, Subscription(folder=folder) as second:
        readers = [threading.Thread(target=each.recv, args=(10,)) for each in (first, second)]
        with Publisher(folder=folder) as publisher:
            assert not publisher.wait_heard(0.05)  # nobody reads yet
            for reader in readers:
                reader.start()
            assert publisher.wait_heard(10)
            publisher.publish(make_event(0))
            for reader in readers:
                reader.join()


def test_a_killed_publisher_is_told_and_its_successor_is_another(
    folder: Path, start: Callable[..., Remote]
) -> None:
    first = start()
    with Subscription(folder=folder, membership=True) as events:
        events.wait_joined()
        first.publish(0, 3)
        assert isinstance(events.recv(10), PublisherJoined)
        take(events, 3)
        first.kill()
        second = start()
        second.publish(3, 5)
        got = take(events, 4)
        assert second.id != first.id
    assert PublisherLeft(publisher=first.id) in got
    assert PublisherJoined(publisher=second.id) in got
    assert numbers(got) == [3, 4]
    with Publisher(folder=folder):
        names = [path.name for path in owned_folders(folder, "p")]
    assert len(names) == 2  # the dead one's folder was swept


def test_events_follow_a_filter_and_no_others(folder: Path) -> None:
    odd = "a/b ~é%"
    with (
        Publisher(folder=folder) as publisher,
        Subscription(folder=folder, flows=[odd]) as one,
        Subscription(folder=folder, topics=["task-run/etl/Failed"]) as two,
        Subscription(folder=folder, states=["failed"], tasks=["load"]) as three,
        Subscription(folder=folder, environment="other") as four,
        Subscription(folder=folder, environment="*", runs=["run-2"]) as five,
    ):
        subscriptions = (one, two, three, four, five)
        for subscription in subscriptions:
            subscription.wait_joined()
        publisher.publish(make_event(0, flow="etl"))
        publisher.publish(make_event(1, flow=odd))
        publisher.publish(make_event(2, flow="etl", state="Failed"))
        publisher.publish(make_event(3, flow="etl2", state="Failed"))
        assert numbers(take(one, 1)) == [1]
        assert numbers(take(two, 1)) == [2]
        assert numbers(take(three, 2)) == [2, 3]
        assert numbers(take(five, 1)) == [2]
        for subscription in subscriptions:
            with pytest.raises(RecvTimeoutError):
                subscription.recv(0.05)


def test_order_is_the_sequence_when_the_clock_is_set_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Publisher(folder=folder) as publisher, Subscription(folder=folder) as events:
        events.wait_joined()
        now = time.time_ns()
        for number in range(3):
            monkeypatch.setattr(time, "time_ns", lambda n=number: now - n * 10**9)
            publisher.publish(make_event(number))
        got = take(events, 3)
        monkeypatch.undo()
    assert numbers(got) == [0, 1, 2]
    states = [e for e in got if isinstance(e, StateEvent)]
    assert [e.published_ns for e in states] == [now, now - 10**9, now - 2 * 10**9]
    assert [e.monotonic_ns for e in states] == sorted(e.monotonic_ns for e in states)


def test_a_subscriber_that_does_not_read_misses_some_is_told_and_has_the_truth(
    folder: Path, start: Callable[..., Remote]
) -> None:
    remote = start()
    with Subscription(folder=folder) as events:
        events.wait_joined()
        n = 120_000  # more than all queues hold
        remote.publish(0, n)
        remote.published()
        got: list[Event] = []
        while not (got and isinstance(got[-1], StateEvent) and got[-1].sequence == n):
            got.append(events.recv(20))
    gaps = [e for e in got if isinstance(e, Gap)]
    assert gaps
    assert sum(gap.lost for gap in gaps) + len(numbers(got)) == n
    assert numbers(got) == sorted(numbers(got))


def test_who_was_busy_has_all_of_a_publisher_that_has_ended(
    folder: Path, start: Callable[..., Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfast.events.feed.OWNER_S", 0.2)
    remote = start()
    with Subscription(folder=folder, membership=True) as events:
        events.wait_joined()
        n = 6000  # more than is read at once
        remote.publish(0, n)
        remote.published()
        got = take(events, 2)
        remote.end()  # it waits a second for us, who are away
        while not isinstance(got[-1], PublisherLeft):
            got.append(events.recv(20))
    assert numbers(got) == list(range(n))
    assert not [e for e in got if isinstance(e, Gap)]


def test_an_event_that_is_too_large_is_cut_and_the_next_ones_come(folder: Path) -> None:
    large = make_event(1)
    large.inputs = [
        Input(run_id=str(UUID(int=number)), shared_nbytes=1 << 30, copied_nbytes=1 << 20)
        for number in range(20_000)
    ]
    with Publisher(folder=folder) as publisher, Subscription(folder=folder) as live:
        live.wait_joined()
        publisher.publish(large)
        with Subscription(folder=folder) as late:
            late.wait_joined()
            publisher.publish(make_event(2))
            both = [take(live, 2), take(late, 2)]
    for got in both:
        assert numbers(got) == [1, 2]
        assert isinstance(got[0], StateEvent)
        assert got[0].inputs == large.inputs[:1000]
    assert len(large.inputs) == 20_000


def test_a_stopped_publisher_hangs_nobody_and_goes_on(
    folder: Path, start: Callable[..., Remote]
) -> None:
    remote = start()
    with Subscription(folder=folder) as events:
        events.wait_joined()
        remote.signal(signal.SIGSTOP)
        with pytest.raises(RecvTimeoutError):
            events.recv(0.2)
        remote.signal(signal.SIGCONT)
        remote.publish(0, 1)
        assert numbers(take(events, 1)) == [0]


def test_a_forked_child_publishes_nothing_and_leaves_the_parents_alone(folder: Path) -> None:
    with Publisher(folder=folder) as publisher, Subscription(folder=folder) as events:
        events.wait_joined()
        pid = os.fork()
        if pid == 0:
            publisher.publish(make_event(99))
            publisher.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        publisher.publish(make_event(1))
        assert numbers(take(events, 1)) == [1]


def test_a_folder_that_is_open_to_others_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    open_to_others = tmp_path / f"zfast-events-{os.getuid()}"
    open_to_others.mkdir()
    open_to_others.chmod(0o755)  # whatever the umask
    with pytest.raises(ConfigError, match="not a folder of yours alone"):
        Publisher()
    with pytest.raises(ConfigError, match="not a folder of yours alone"):
        zfast.subscribe()


def test_a_folder_whose_path_is_too_long_for_a_socket_is_refused(folder: Path) -> None:
    long = folder / ("x" * 100)
    long.mkdir()
    for make in (Publisher, zfast.subscribe):
        with pytest.raises(ConfigError, match="longer than"):
            make(folder=long)
    assert not list(long.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        {"flows": "etl"},
        {"kinds": ["work-pool"]},
        {"topics": ["a/b/c/d"]},
        {"topics": [f"task-run/{n}" for n in range(65)]},
        {"endpoint": "tcp://127.0.0.1:5555"},
        {"endpoint": "http://x"},
        {"endpoint": "inproc://x"},
        {"environment": "*", "topics": ["task-run"]},
    ],
)
def test_bad_arguments_are_refused(folder: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        zfast.subscribe(folder=folder, **arguments)


# ---- a subscriber's own ways --------------------------------------------------------------


def test_iteration_ends_on_request(folder: Path) -> None:
    with Publisher(folder=folder) as publisher:
        events = Subscription(folder=folder)
        events.wait_joined()
        publisher.publish(make_event(1))
        assert numbers([next(events)]) == [1]
        timer = threading.Timer(0.1, events.close)
        timer.start()
        assert list(events) == []
        timer.join()


def test_async_iteration(folder: Path) -> None:
    async def read() -> list[Event]:
        got: list[Event] = []
        async with Subscription(folder=folder) as events:
            asyncio.get_running_loop().call_later(0.05, publisher.publish, make_event(1))
            async for event in events:
                got.append(event)
                if len(got) == 2:
                    events.close()
                else:
                    publisher.publish(make_event(2))
        return got

    with Publisher(folder=folder) as publisher:
        assert numbers(asyncio.run(read())) == [1, 2]


def test_waiting_for_a_state(folder: Path) -> None:
    with Publisher(folder=folder) as publisher:
        publisher.publish(make_event(1))
        later = threading.Timer(0.1, publisher.publish, [make_event(1, state="Failed")])
        later.start()
        event = wait_for_state("run-1", timeout=10, folder=folder)
        assert event.state_name == "Failed"
        # It is told of what is so already, too.
        assert wait_for_state("run-1", timeout=10, folder=folder).state_id == event.state_id
        with pytest.raises(RecvTimeoutError, match="zfast watch"):
            wait_for_state("run-2", timeout=0.1, folder=folder)
        later.join()


def test_reactions(folder: Path) -> None:
    called: list[str] = []
    ran, called_again = threading.Event(), threading.Event()

    def call(event: Event) -> None:
        assert isinstance(event, StateEvent)
        called.append(event.run_id)
        if event.run_id == "run-0":
            raise ValueError("a bad callback")
        called_again.set()

    with Publisher(folder=folder) as publisher:
        publisher.publish(make_event(7, state="Completed"))  # before: no reason to run
        with (
            on_event(call, folder=folder, states=["RUNNING"]) as one,
            when(flow="etl", task="load", state="Completed", folder=folder).run(
                lambda event: (called.append(f"when {event.run_id}"), ran.set()), once=True
            ) as two,
        ):
            one.wait_joined()
            two.wait_joined()
            publisher.publish(make_event(0))
            publisher.publish(make_event(1))
            publisher.publish(make_event(1, state="Completed"))
            assert ran.wait(10)
            assert called_again.wait(10)
    assert "when run-1" in called
    assert "when run-7" not in called
    assert called[:1] == ["run-0"] or "run-0" in called
    assert "run-1" in called  # the callback that failed was called again


def test_a_reaction_joins_a_publisher_that_answers_late(
    folder: Path, start: Callable[..., Remote]
) -> None:
    called = threading.Event()
    remote = start()
    remote.signal(signal.SIGSTOP)
    with on_event(lambda _: called.set(), folder=folder) as reaction:
        with pytest.raises(RecvTimeoutError, match="does not answer"):
            reaction.wait_joined(1.2)
        remote.signal(signal.SIGCONT)
        reaction.wait_joined(10)
        remote.publish(0, 1)
        assert called.wait(10)


# ---- a relay --------------------------------------------------------------------------------


class Relaying:
    """A relay on a thread."""

    def __init__(self, url: str) -> None:
        self.relay = Relay(url, insecure=url.startswith("tcp"))
        self.thread = threading.Thread(target=self.relay.run)
        self.thread.start()

    def __enter__(self) -> str:
        return self.relay.endpoint

    def __exit__(self, *_: object) -> None:
        self.relay.stop()
        self.thread.join()


def test_a_relay_passes_everything_and_knows_the_truth(
    folder: Path, start: Callable[..., Remote]
) -> None:
    with Relaying(f"ipc://{folder}/relay") as url:
        remotes = [start(url) for _ in range(2)]
        with Subscription(url) as early:
            early.wait_joined()
            for remote in remotes:
                remote.publish(0, 500)
                remote.published()
            got = take(early, 1000)
            with Subscription(url, flows=["etl"], membership=True) as late:
                truth = take(late, 1002)
            for remote in remotes:
                remote.publish(500, 600)
                remote.published()
                remote.end()
            got += take(early, 200)
    for remote in remotes:
        mine: list[Event] = [
            e for e in got if isinstance(e, StateEvent) and e.publisher == remote.id
        ]
        assert numbers(mine) == list(range(600))
    assert sorted(numbers(truth)) == sorted([*range(500), *range(500)])


def test_a_relay_tells_what_publishers_said_that_have_left(
    folder: Path, start: Callable[..., Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Relaying(f"ipc://{folder}/relay") as url, Speaking(url) as other:
        with Subscription(url) as early:
            early.wait_joined()
            remote = start(url)
            remote.publish(0, 2)
            remote.publish(0, 1, state="Completed")
            take(early, 3)
        remote.end()
        with Subscription(url, membership=True) as late:
            got = take(late, 4)
            assert got[0] == PublisherJoined(publisher=remote.id)
            assert got[3] == PublisherLeft(publisher=remote.id)
            states = {e.run_id: e.state_name for e in got if isinstance(e, StateEvent)}
            assert states == {"run-0": "Completed", "run-1": "Running"}
        # Not for ever.
        monkeypatch.setattr("zfast.events.departed.time", SimpleNamespace(monotonic=lambda: 1e9))
        other.beat()
        with Subscription(url, membership=True) as later:
            other.publish(7)
            other.tell([])
            got = take(later, 2)
        assert got[0] == PublisherJoined(publisher=other.id.hex())
        assert numbers(got) == [7]


def test_who_was_killed_leaves_the_relay_what_has_ended(
    folder: Path, start: Callable[..., Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Relaying(f"ipc://{folder}/relay") as url:
        remote = start(url)
        with Subscription(url, membership=True) as events:
            events.wait_joined()
            remote.publish(0, 2)
            remote.publish(0, 1, state="Completed")
            take(events, 4)
            remote.kill()
            monkeypatch.setattr("zfast.events.relay.SILENT_S", 0.5)
            assert events.recv(10) == PublisherLeft(publisher=remote.id)  # and no gap
        with Subscription(url) as late:
            got = take(late, 1)
            assert [(e.run_id, e.state_name) for e in got if isinstance(e, StateEvent)] == [
                ("run-0", "Completed")
            ]
            with pytest.raises(RecvTimeoutError):
                late.recv(0.05)


@pytest.mark.filterwarnings("ignore::zfast.addresses.InsecureEndpointWarning")
def test_who_was_away_when_a_publisher_left_has_all_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfast.events.feed.SILENT_S", 0.5)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(Relaying("tcp://127.0.0.1:*"))
        control_url, subscribers_url, events_url = relay_endpoints(url)
        proxy = Proxy(subscribers_url)
        stack.callback(proxy.close)
        monkeypatch.setattr(
            "zfast.events.feed.relay_endpoints", lambda _: (control_url, proxy.endpoint, events_url)
        )
        publisher = stack.enter_context(Publisher(folder=folder, relay=url, insecure=True))
        events = stack.enter_context(Subscription(url, membership=True, insecure=True))
        events.wait_joined()
        publisher.publish(make_event(1))
        got = take(events, 2)
        proxy.swallows = True
        time.sleep(0.05)  # it looks every 20 ms
        publisher.publish(make_event(1, state="Completed"))
        publisher.close()
        proxy.cut()
        proxy.swallows = False
        got = take(events, 2)
    assert isinstance(got[0], StateEvent)
    assert got[0].state_name == "Completed"
    assert got[1] == PublisherLeft(publisher=publisher.id.hex())


@pytest.mark.filterwarnings("ignore::zfast.addresses.InsecureEndpointWarning")
def test_a_relay_on_tcp(folder: Path) -> None:
    with Relaying("tcp://127.0.0.1:*") as url:
        with pytest.raises(ConfigError, match="open to anyone"):
            Subscription(url)
        with (
            Publisher(folder=folder, relay=url, insecure=True) as publisher,
            Subscription(url, insecure=True) as events,
        ):
            events.wait_joined()
            publisher.publish(make_event(1))
            assert numbers(take(events, 1)) == [1]


def test_a_relay_that_began_anew_has_no_gap(folder: Path, start: Callable[..., Remote]) -> None:
    url = f"ipc://{folder}/relay"
    with Relaying(url):
        remote = start(url)
        events = Subscription(url)
        events.wait_joined()
        remote.publish(0, 100)
        remote.published()
        got = take(events, 100)
    remote.publish(100, 200)  # while there is none
    remote.published()
    with Relaying(url), events:
        got += take(events, 100)
        remote.publish(200, 300)
        got += take(events, 100)
    assert numbers(got) == list(range(300))


def test_a_relay_that_began_anew_has_no_gap_while_much_is_published(
    folder: Path, start: Callable[..., Remote]
) -> None:
    url = f"ipc://{folder}/relay"
    with Relaying(url):
        remote = start(url)
        events = Subscription(url, flows=["etl"])
        events.wait_joined()
        remote.publish(0, 2000)
        got = take(events, 2000)
        remote.publish(2000, 2300, rate=200)
        got += take(events, 50)
    with Relaying(url), events:
        got += take(events, 250)
        with Subscription(url, flows=["etl"]) as late:
            truth = take(late, 2300)
    assert numbers(got) == list(range(2300))
    assert numbers(truth) == list(range(2300))


class Speaking:
    """What a publisher does to a relay, step by step, and what it remembers."""

    def __init__(self, url: str) -> None:
        self.id = os.urandom(16)
        self.memory = EventMemory()
        control_url, _, events_url = relay_endpoints(url)
        self.events = process_context().socket(zmq.XPUB)
        self.control = process_context().socket(zmq.DEALER)
        self.events.connect(events_url)
        self.control.connect(control_url)
        assert self.events.poll(10_000)  # the relay subscribes to all
        self.events.recv()

    def __enter__(self) -> Speaking:
        return self

    def __exit__(self, *_: object) -> None:
        self.events.close(0)
        self.control.close(0)

    def publish(self, number: int, *, flow: str = "etl", lost: bool = False) -> None:
        event = make_event(number, flow=flow)
        topic = make_topic([event.environment, event.kind, event.flow_name, event.state_name])
        counts, body = self.memory.advance(topic), encode_body(event)
        frame = pack_frame(topic, self.id, counts, body)
        self.memory.keep(EventFrame(topic, self.id, counts, body, frame), event.run_id, final=False)
        if not lost:
            self.events.send(frame)

    def beat(self) -> int:
        """How far the relay has heard us, when it has had time to hear the last event too."""
        seen = -1
        for _ in range(5):
            position = self.memory.positions([b""])[0]
            self.control.send(encode_message(Beat(publisher=self.id, position=position)))
            assert self.control.poll(10_000)
            answer = decode_message(self.control.recv())
            assert isinstance(answer, BeatHeard)
            seen = answer.seen
            time.sleep(0.01)
        return seen

    def tell(self, frames: list[bytes], *, more: bool = False) -> None:
        self.control.send_multipart(
            [encode_message(History(publisher=self.id, more=more)), *frames]
        )


def test_what_is_live_waits_for_the_last_part_of_a_history(folder: Path) -> None:
    with (
        Relaying(f"ipc://{folder}/relay") as url,
        Subscription(url, flows=["etl"]) as events,
        Speaking(url) as publisher,
    ):
        events.wait_joined()
        for number in range(9):
            publisher.publish(number, lost=True)
        frames = publisher.memory.since([b""], [0])
        publisher.tell(frames[:3], more=True)
        publisher.publish(9)
        assert publisher.beat() == 3
        publisher.tell(frames[3:6], more=True)
        assert publisher.beat() == 6
        publisher.tell(frames[6:])
        assert numbers(take(events, 10)) == list(range(10))
        # Once more, for one that was let in already.
        publisher.tell([], more=True)
        publisher.beat()
        publisher.publish(10)
        assert publisher.beat() == 10
        publisher.tell([])
        publisher.publish(11)
        assert numbers(take(events, 2)) == [10, 11]


def test_what_a_relay_has_not_heard_is_had_from_the_publisher(folder: Path) -> None:
    with (
        Relaying(f"ipc://{folder}/relay") as url,
        Subscription(url, flows=["a"]) as narrow,
        Subscription(url) as wide,
        Speaking(url) as publisher,
    ):
        narrow.wait_joined()
        wide.wait_joined()
        publisher.publish(1, flow="a")
        publisher.tell([])
        assert numbers(take(narrow, 1) + take(wide, 1)) == [1, 1]
        publisher.publish(2, flow="a", lost=True)
        publisher.publish(3, flow="b")
        seen = publisher.beat()
        assert seen == 1
        publisher.tell(publisher.memory.since([b""], [seen]))
        assert numbers(take(narrow, 1)) == [2]
        assert numbers(take(wide, 2)) == [2, 3]


def test_what_the_publisher_has_forgotten_too_is_a_gap_and_delays_nothing(folder: Path) -> None:
    with (
        Relaying(f"ipc://{folder}/relay") as url,
        Subscription(url) as events,
        Speaking(url) as publisher,
    ):
        events.wait_joined()
        publisher.publish(1)
        publisher.tell([])
        assert numbers(take(events, 1)) == [1]
        for number in (2, 3):
            publisher.publish(number, lost=True)
        publisher.publish(4)
        seen = publisher.beat()
        assert seen == 1
        publisher.publish(5)
        publisher.tell(publisher.memory.since([b""], [seen])[1:3])  # 2 is no more
        publisher.publish(6)
        got = take(events, 5)
    assert [e for e in got if isinstance(e, Gap)] == [Gap(publisher=publisher.id.hex(), lost=1)]
    assert numbers(got) == [3, 4, 5, 6]


def test_what_waits_for_a_publisher_that_has_died_passes_after_a_gap(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Relaying(f"ipc://{folder}/relay") as url,
        Subscription(url, membership=True) as events,
        Speaking(url) as publisher,
    ):
        events.wait_joined()
        publisher.publish(1)
        publisher.tell([])
        publisher.publish(2, lost=True)
        publisher.publish(3)
        assert publisher.beat() == 1
        monkeypatch.setattr("zfast.events.relay.SILENT_S", 2.0)
        got = take(events, 4)
    assert got[0] == PublisherJoined(publisher=publisher.id.hex())
    assert got[2] == Gap(publisher=publisher.id.hex(), lost=1)
    assert numbers(got) == [1, 3]


@pytest.mark.filterwarnings("ignore::zfast.addresses.InsecureEndpointWarning")
def test_a_connection_to_the_relay_that_is_cut_costs_nobody_an_event(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(Relaying("tcp://127.0.0.1:*"))
        control_url, subscribers_url, events_url = relay_endpoints(url)
        proxy = Proxy(events_url)
        stack.callback(proxy.close)
        with monkeypatch.context() as patched:
            patched.setattr(
                "zfast.events.relay_link.relay_endpoints",
                lambda _: (control_url, subscribers_url, proxy.endpoint),
            )
            publisher = stack.enter_context(Publisher(folder=folder, relay=url, insecure=True))
        local = stack.enter_context(Subscription(folder=folder))
        narrow = stack.enter_context(Subscription(url, flows=["a"], insecure=True))
        wide = stack.enter_context(Subscription(url, insecure=True))
        for each in (local, narrow, wide):
            each.wait_joined()
        publisher.publish(make_event(0, flow="a"))
        assert numbers(take(narrow, 1) + take(wide, 1) + take(local, 1)) == [0, 0, 0]
        proxy.swallows = True
        time.sleep(0.05)  # it looks every 20 ms
        publisher.publish(make_event(1, flow="a"))
        assert numbers(take(local, 1)) == [1]  # by now it is on its way to the relay too
        proxy.cut()
        proxy.swallows = False
        last = 50
        for number in range(2, last + 1):
            publisher.publish(make_event(number, flow="b"))
            time.sleep(0.01)  # the new connection may take a moment
        assert numbers(take(narrow, 1)) == [1]
        assert numbers(take(wide, last)) == list(range(1, last + 1))


@pytest.mark.parametrize("beside", ["", ".events", ".publish"])
def test_a_relay_takes_no_file_away(folder: Path, beside: str) -> None:
    file = folder / f"relay{beside}"
    file.write_text("data")
    with pytest.raises(ConfigError, match="a file that is no socket"):
        Relay(f"ipc://{folder}/relay")
    assert file.read_text() == "data"


def test_a_relay_at_inproc_would_reach_nobody() -> None:
    with pytest.raises(ConfigError, match="reaches no other process"):
        Relay("inproc://relay")


@pytest.mark.filterwarnings("ignore::zfast.addresses.InsecureEndpointWarning")
def test_garbage_at_a_relays_ports_changes_nothing(folder: Path) -> None:
    noise = os.urandom(3000)
    frame = pack_frame(b"a/b/c/d/", b"p" * 16, (2**64 - 1,) * 5, noise)
    messages: list[list[bytes]] = [
        [b""],
        [noise],
        [b"\x01" + noise],
        [frame],
        [frame[:40]],
        [b"~~~\0" + noise],
        [encode_message(Beat(publisher=b"", position=-1, leaving=True))],
        [encode_message(History(publisher=b"p" * 16)), noise, frame],
        [encode_message(Ask(number=-1, prefixes=[noise], seen={b"": [1, 2, 3]}))],
        [encode_message(Hello()), *[noise] * 50],
    ]
    with (
        Relaying("tcp://127.0.0.1:*") as url,
        Publisher(folder=folder, relay=url, insecure=True) as publisher,
        Subscription(url, insecure=True) as events,
    ):
        events.wait_joined()
        with contextlib.ExitStack() as opened:
            for endpoint, kind in zip(
                relay_endpoints(url), (zmq.DEALER, zmq.XSUB, zmq.PUSH), strict=True
            ):
                host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
                with socket.create_connection((host, int(port))) as stranger:
                    stranger.sendall(noise)
                peer = opened.enter_context(
                    process_context().socket(zmq.XPUB if kind == zmq.PUSH else kind)
                )
                peer.linger = 0
                peer.connect(endpoint)
                for _ in range(20):  # a connection may take a moment
                    for message in messages:
                        with contextlib.suppress(zmq.ZMQError):
                            peer.send_multipart(message, zmq.DONTWAIT)
                    time.sleep(0.005)
            for number in range(100):
                publisher.publish(make_event(number))
            assert numbers(take(events, 100)) == list(range(100))


@pytest.mark.filterwarnings("ignore::zfast.addresses.InsecureEndpointWarning")
@pytest.mark.parametrize("url", ["tcp://127.0.0.1:*", "ipc://{folder}/relay"])
def test_a_second_relay_at_the_same_endpoint_is_refused(folder: Path, url: str) -> None:
    with (
        Relaying(url.format(folder=folder)) as taken,
        pytest.raises(TransportError, match="in use"),
    ):
        Relay(taken, insecure=True)


def test_who_says_hello_and_goes_is_forgotten(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("zfast.events.desk.time", SimpleNamespace(monotonic=lambda: now))
    url = f"ipc://{folder}/control"
    with process_context().socket(zmq.ROUTER) as control:
        control.bind(url)
        desk = ControlDesk(control, Welcome(source=b"s"), {}, threading.Lock(), lambda frame: None)
        for _ in range(100):
            with process_context().socket(zmq.DEALER) as guest:
                guest.connect(url)
                guest.send(encode_message(Hello()))
                assert control.poll(10_000)
                desk.serve()
                assert guest.poll(10_000)
            now += 1.0
        assert len(desk._peers) <= 4 * PEER_S + 1


@pytest.mark.filterwarnings("ignore::zfast.addresses.InsecureEndpointWarning")
def test_what_publishes_nothing_readable_is_bounded_and_forgotten(folder: Path) -> None:
    """Publishers that send one event and no history cost a little for 10 s, and are few."""
    with Relaying(f"ipc://{folder}/relay") as url:
        peer = process_context().socket(zmq.PUB)
        peer.linger = 0
        peer.connect(relay_endpoints(url)[2])
        with (
            Subscription(url) as events,
            Publisher(folder=folder, relay=url) as publisher,
        ):
            events.wait_joined()
            for number in range(6000):
                peer.send(pack_frame(b"a/b/c/d/", number.to_bytes(16, "big"), (1,) * 5, b"\x80"))
            publisher.publish(make_event(1))
            assert numbers(take(events, 1)) == [1]
        peer.close(0)
