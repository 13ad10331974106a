"""``zfast ui`` in a real browser, and ``zfast top`` in a terminal of 80×24: what a user sees."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import browser
from events_process import make_event
from hub_jobs import settled
from terminal import Terminal
from zfast.cli.ui import DEFAULT_PORT
from zfast.events.event import Input, WorkerEvent
from zfast.events.publisher import Publisher

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ZFAST = [
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'zfast'; from zfast.cli import main; main()",
]
needs_browser = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
MIB = 1 << 20


@pytest.fixture
def publisher(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    with Publisher() as made:
        yield made


def publish_flow(publisher: Publisher, *, flow: str = "etl") -> None:
    """A flow run of two workers: one loads, the other joins what it was given, a third fails."""

    def tell(number: int, state: str, worker: str, **fields: Any) -> None:
        event = make_event(number, flow=flow, state=state)
        event.run_id, event.worker, event.flow_run_id = f"{flow}-{number}", worker, flow
        event.run_name = f"{fields.get('name', 'load')}-{number}"
        for name, value in fields.items():
            setattr(event, name, value)
        publisher.publish(event)

    def tell_flow(state: str) -> None:
        event = make_event(0, flow=flow, state=state)
        event.kind, event.run_id, event.flow_run_id, event.run_name = (
            "flow-run",
            flow,
            flow,
            "red-fox",
        )
        publisher.publish(event)

    tell_flow("Running")
    tell(1, "Running", "host:1")
    tell(1, "Completed", "host:1")
    given = [Input(run_id=f"{flow}-1", shared_nbytes=300 * MIB)]
    tell(2, "Running", "host:2", name="join", inputs=given, handover_ns=10**6)
    tell(3, "Running", "host:1", name="check")
    tell(3, "Failed", "host:1", name="check")
    for worker, state in (("host:1", "Idle"), ("host:2", "Busy")):
        publisher.publish(
            WorkerEvent(
                environment="default", worker=worker, state_name=state, flow_name=flow,
                flow_run_id=flow, memory_nbytes=123 * MIB, arena_nbytes=448 * MIB,
                lent_nbytes=300 * MIB, leases=7,
            )
        )  # fmt: skip


# ---- the page ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.browsing() as opened:
        yield opened


@pytest.fixture
def page_url(publisher: Publisher) -> Iterator[str]:
    process = subprocess.Popen(
        [*ZFAST, "ui", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())["url"]
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0


def open_page(chromium: Browser, url: str, **options: Any) -> tuple[Page, list[str]]:
    page = chromium.new_page(**options)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.goto(url)
    page.wait_for_selector("#link.on")
    return page, errors


def wait_until_joined(page: Page, publisher: Publisher) -> None:
    """What is published from then on the page gets as it happens, and not as what was before."""
    event = WorkerEvent(environment="default", worker="host:0", state_name="Idle")

    def shows() -> bool:
        publisher.publish(event)
        return page.locator("#workers tr:has-text('host:0')").count() == 1

    settled(shows, 30)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_what_happens(
    scheme: Any, chromium: Browser, page_url: str, publisher: Publisher
) -> None:
    page, errors = open_page(chromium, page_url, color_scheme=scheme)
    try:
        wait_until_joined(page, publisher)
        publish_flow(publisher)
        page.wait_for_selector("#flows tr:has-text('red-fox')")
        page.wait_for_selector("#workers tr:has-text('busy')")  # which is published last
        assert page.locator("#timeline rect").count() == 3
        assert page.locator("#timeline path.handover").count() == 1
        assert "300 MiB" in (page.locator("#timeline text.bytes").text_content() or "")
        cards = page.locator("#cards").inner_text().split()
        for state in ("running", "completed", "failed"):
            assert cards[cards.index(state) - 1] == "1"
        workers = page.locator("#workers").inner_text()
        assert "448 MiB" in workers
        assert "busy" in workers
        assert page.locator("#latency circle").count() == 6
        page.fill("#filter", "join")
        page.wait_for_selector("#timeline:not(:has(rect:nth-of-type(2)))")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(ground.removeprefix("rgb(").split(",")[0])
        assert red < 60 if scheme == "dark" else red > 200
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert errors == []
    finally:
        page.close()


def test_the_page_and_the_relay_of_the_documentation_have_ports_of_their_own() -> None:
    text = (Path(__file__).parents[1] / "docs/live-states.md").read_text(encoding="utf-8")
    relay = re.search(r"zfast relay tcp://\S+:(\d+)", text)
    page = re.search(r"ssh -L (\d+):127.0.0.1:(\d+) HOST", text)
    assert relay is not None
    assert page is not None
    ports = [int(relay[1]) + n for n in range(3)]
    assert DEFAULT_PORT not in ports
    assert page.groups() == (str(DEFAULT_PORT), str(DEFAULT_PORT))


@needs_browser
def test_what_a_flow_calls_itself_is_text_to_the_page(
    chromium: Browser, page_url: str, publisher: Publisher
) -> None:
    page, errors = open_page(chromium, page_url)
    try:
        publish_flow(publisher, flow="<img src=x onerror=\"document.title='broken'\">")
        page.wait_for_selector("#flows tr:has-text('onerror')")
        assert page.title() == "zfast"
        assert page.locator("img").count() == 0
        assert errors == []
    finally:
        page.close()


@needs_browser
def test_a_page_that_is_opened_late_has_the_truth(
    chromium: Browser, page_url: str, publisher: Publisher
) -> None:
    publish_flow(publisher)
    page, errors = open_page(chromium, page_url, viewport={"width": 420, "height": 800})
    try:
        page.wait_for_selector("#flows tr:has-text('red-fox')")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # on a phone
        assert errors == []
    finally:
        page.close()


@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_it_while_a_page_is_open(
    how: signal.Signals, status: int, publisher: Publisher
) -> None:
    process = subprocess.Popen(
        [*ZFAST, "ui", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with urllib.request.urlopen(f"{url}events", timeout=20) as page:
            publish_flow(publisher)
            assert page.readline().startswith(b"data: ")
            process.send_signal(how)
            assert process.wait(20) == status
    finally:
        process.kill()
        process.communicate()


# ---- the terminal --------------------------------------------------------------------------


def test_top_in_a_terminal_of_80_by_24(publisher: Publisher) -> None:
    with Terminal([*ZFAST, "top", "--interval", "0.1"]) as terminal:
        terminal.wait_for(lambda text: "zfast top" in text)
        publish_flow(publisher)
        terminal.wait_for(lambda text: "etl" in text)  # it has joined, and misses nothing
        publish_flow(publisher, flow="report")
        # The first flow has shown the others already: the second one's name is what is new.
        shown = terminal.wait_for(
            lambda text: "448 MiB" in text and "MiB in place" in text and "report" in text
        )
        assert "GB/s" in shown
        assert "report" in shown
        assert "leases" in shown
        assert "q quit" in shown  # the last line is there
        terminal.type("/rep\r")
        terminal.wait_for(lambda text: "report" in text and "etl" not in text)
        terminal.type("\x1b")
        terminal.wait_for(lambda text: "etl" in text)
        terminal.type("q")
        assert terminal.process.wait(20) == 0


def test_sigterm_ends_top_cleanly(publisher: Publisher) -> None:
    process = subprocess.Popen(
        [*ZFAST, "top", "--interval", "0.1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.terminate()
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()
        process.communicate()


def test_sigterm_ends_top_cleanly_on_a_terminal(publisher: Publisher) -> None:
    with Terminal([*ZFAST, "top", "--interval", "0.1"]) as terminal:
        terminal.wait_for(lambda text: "zfast top" in text)
        terminal.process.terminate()
        assert terminal.process.wait(20) == 0
