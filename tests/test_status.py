"""``zfast status``: how far a flow run is, on a terminal."""

from __future__ import annotations

import json
import sys
import threading

import pytest
import zmq

from hub_jobs import wait_for_file
from terminal import Terminal
from test_cli import run_zfast
from zfast import _core
from zfast.context import process_context
from zfast.runner.remote_protocol import REMOTE_MESSAGES, Status
from zfast.runner.runtime_folder import HUB, RuntimeFolder


def test_the_progress_of_a_flow_run_on_a_terminal(start_hub, journal, tmp_path):
    command = [sys.executable, "-c", "from zfast.cli import main; main()", "status", "--watch"]
    with Terminal(command, columns=100) as terminal:
        terminal.wait_for(lambda text: "no task runner has workers now" in text)
        jobs = start_hub(max_workers=1, spares=0)
        jobs.run(lambda *_: None)
        gate = tmp_path / "gate"
        outcomes = [jobs.submit(wait_for_file, (journal, key, gate)) for key in "ab"]
        try:
            terminal.wait_for(
                lambda text: "1 ended, 1 running, 1 waiting" in text and "busy" in text
            )
        finally:
            gate.touch()
        assert [jobs.value(outcome) for outcome in outcomes] == ["a", "b"]
        terminal.wait_for(lambda text: "3 ended, 0 running, 0 waiting" in text)


@pytest.fixture
def hub_of_another_version(runtime_root):
    """The folder of a hub that answers each question with a status that lacks most fields."""
    folder = RuntimeFolder(HUB)
    answerer = process_context().socket(zmq.ROUTER)
    answerer.bind(folder.endpoint)
    ended = threading.Event()

    def answer():
        while not ended.is_set():
            if answerer.poll(50):
                asked = _core.recv(answerer, routed=True)
                _core.send_message(
                    answerer,
                    *REMOTE_MESSAGES.encode(Status()),
                    [b'{"pid":1,"workers":[]}'],
                    routing_id=asked.routing_id,
                )

    thread = threading.Thread(target=answer)
    thread.start()
    yield folder
    ended.set()
    thread.join()
    answerer.close(linger=0)
    folder.remove()


def test_a_hub_of_another_version_is_named_and_the_others_are_shown(
    start_hub, hub_of_another_version
):
    alone = run_zfast("status")
    assert alone.returncode == 1
    assert "no other task runner has workers now" in alone.stdout
    jobs = start_hub(max_workers=1, spares=0)
    jobs.run(lambda *_: None)
    done = run_zfast("status", "--json")
    assert [hub["ended"] for hub in json.loads(done.stdout)] == [1]
    assert done.returncode == 1
    for words in (hub_of_another_version.endpoint, "`endpoint`", "another version"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
