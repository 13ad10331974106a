"""``zfast status``: how far a flow run is, on a terminal."""

from __future__ import annotations

import sys

from hub_jobs import wait_for_file
from terminal import Terminal


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
