"""What the verbs of ``zfast store`` share: their options, and how they show things."""

from __future__ import annotations

import json as json_format
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from zfast.cli.path_options import to_path
from zfast.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfast.store.folder import FolderStore

#: Exit status of a verb that did its work and found something that is not as it should be.
FOUND = 3
#: That of one that found nothing wrong in what it could check, and files that it could not.
UNCHECKED = 4

Basepath = Annotated[Path | None, Parameter(env_var="ZFAST_STORAGE_PATH", converter=to_path)]
Switch = Annotated[bool, Parameter(negative="", show_default=False)]


def parse_nbytes(text: str) -> int:
    """Read a size such as 20GB, 512MiB or 1000000.

    Raises:
        ConfigError: It is not one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{text!r} is not a size", hint="give one such as 20GB or 512MiB")
    number, unit, binary = match.groups()
    power = "KMGT".index(unit.upper()) + 1 if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def basepath_of(given: Path | None) -> Path:
    """Return the folder to work on: the one given, or the storage block's default."""
    # As the block's default, without importing Prefect.
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect")
    return (given or home / "zfast-results").expanduser()


def open_store(given: Path | None) -> FolderStore:
    """Open the store to work on.

    Raises:
        ConfigError: There is none.
        StoreError: Nothing says whether there is one.
    """
    from zfast.store.files import failure
    from zfast.store.folder import FolderStore

    basepath = basepath_of(given)
    try:
        is_there = basepath.is_dir()
    except OSError as error:
        raise failure("cannot look at", str(basepath), error) from error
    if not is_there:
        raise ConfigError(
            f"there is no store {basepath}",
            hint="name its folder with --basepath or in $ZFAST_STORAGE_PATH",
        )
    return FolderStore(str(basepath))


@contextmanager
def show_progress(text: str, store: FolderStore | None = None) -> Iterator[Callable[[str], None]]:
    """Show a bar on a terminal; give what to call for each object."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn(text),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[key]}"),
    )
    from zfast.store.walk import pass_over

    with Progress(*columns, console=console, transient=True) as progress:
        total = None if store is None else sum(1 for _ in store.scan(pass_over))
        task = progress.add_task(text, total=total, key="")
        yield lambda key: progress.update(task, advance=1, key=key[-40:])


def format_moment(seconds: float | None) -> str | None:
    """Write a moment, in seconds since 1970, as UTC."""
    if seconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def format_size(nbytes: int) -> str:
    """Write a number of bytes to be read."""
    from rich.filesize import decimal

    return decimal(nbytes)


def print_json(value: Any) -> None:
    """Print a value as JSON to standard output."""
    print(json_format.dumps(value, indent=2))
