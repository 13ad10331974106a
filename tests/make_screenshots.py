"""Pictures of the live views for the documentation, taken while the demo's flow runs.

    python tests/make_screenshots.py [--years 2] [--output docs/images]

Needs Chromium: ``apt-get install chromium-headless-shell``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyte
from prefect.testing.utilities import prefect_test_harness
from rich.console import Console
from rich.style import Style
from rich.text import Text

import browser
from terminal import Terminal

_MAIN = "import sys; sys.argv[0] = 'zfast'; from zfast.cli import main; main()"
ZFAST = [sys.executable, "-c", _MAIN]
#: The demo's flow, twice: the first one makes the workers' imports and clients warm.
FLOW = """
import sys
import zfast
from zfast.demo.flow import flight_delays
flow = flight_delays.with_options(task_runner=zfast.ZfastTaskRunner(max_workers=3))
with zfast.broadcast():
    for _ in range(2):
        flow(int(sys.argv[1]))
"""
#: The last task of the second run has begun: all hand-overs are to be seen.
SHOWN = """
document.querySelectorAll('#flows tr').length == 2
&& document.querySelectorAll('path.handover').length >= 29
&& document.querySelectorAll('#workers tr').length >= 3
"""


@contextlib.contextmanager
def serving_page() -> Iterator[str]:
    """The address of ``zfast ui``."""
    process = subprocess.Popen(
        [*ZFAST, "ui", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.communicate()


def take(output: Path, n_years: int) -> None:
    """Run the flow, and take the pictures."""
    with (
        browser.browsing() as opened,
        serving_page() as url,
        Terminal([*ZFAST, "top", "--interval", "0.2"]) as terminal,
    ):
        pages = {}
        for scheme in ("light", "dark"):
            pages[scheme] = opened.new_page(
                color_scheme=scheme,  # type: ignore[arg-type]
                viewport={"width": 1240, "height": 830},
                device_scale_factor=1.5,
                bypass_csp=True,  # for what we wait for
            )
            pages[scheme].goto(url)
            pages[scheme].wait_for_selector("#link.on")
        terminal.wait_for(lambda text: "zfast top" in text)
        flow = subprocess.Popen([sys.executable, "-c", FLOW, str(n_years)])
        try:
            terminal.wait_for(lambda text: "iB in place" in text and "busy" in text)
            (output / "top.svg").write_text(_as_svg(terminal.screen))
            pages["light"].wait_for_function(SHOWN, timeout=120_000)
            for scheme, page in pages.items():
                page.screenshot(path=output / f"ui-{scheme}.png")
        finally:
            flow.wait(120)


def _as_svg(screen: pyte.Screen) -> str:
    console = Console(width=screen.columns, record=True, file=io.StringIO(), force_terminal=True)
    for line in range(screen.lines):
        text = Text()
        for column in range(screen.columns):
            cell = screen.buffer[line][column]
            style = Style(
                color=None if cell.fg == "default" else _color(cell.fg),
                bold=cell.bold,
            )
            text.append(cell.data, style)
        console.print(text, no_wrap=True, crop=True)
    return console.export_svg(title="zfast top")


def _color(name: str) -> str:
    return {"brown": "yellow"}.get(
        name, f"#{name}" if len(name) == 6 and name != "yellow" else name
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--years", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    reason = browser.missing()
    if reason:
        print(reason, file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
    with (
        tempfile.TemporaryDirectory(prefix="zfs-") as runtime,
        prefect_test_harness(server_startup_timeout=60),
    ):
        os.environ["XDG_RUNTIME_DIR"] = runtime
        from prefect.settings import PREFECT_API_URL

        os.environ["PREFECT_API_URL"] = str(PREFECT_API_URL.value())
        take(options.output, options.years)
    print(f"pictures are in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
