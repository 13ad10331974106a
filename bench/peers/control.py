"""The peer's side of `bench.processes`: answer commands until stdin ends."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]], **hello: Any) -> None:
    """Say hello, then give `answer` each command and print what it returns.

    Whatever else writes to stdout from now on goes to stderr: libraries like to print.
    """
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        print(json.dumps(hello), file=replies, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=replies, flush=True)
