"""docs/result-store.md, done word by word as a new user would, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from doc_pages import blocks_of, docs_page

GUIDE = docs_page("result-store.md")


def test_the_guide_works_as_it_is_written(prefect_api: str, tmp_path: Path) -> None:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PREFECT_HOME": str(tmp_path / ".prefect"),
        "PREFECT_API_URL": prefect_api,
        "COLUMNS": "200",
    }
    (program,) = [
        code for code in blocks_of(GUIDE, "In five minutes", "python") if "# flow.py" in code
    ]
    (tmp_path / "flow.py").write_text(program)

    said: dict[str, list[str]] = {}
    for block in blocks_of(GUIDE, "In five minutes", ""):
        for line in block.splitlines():
            command, _, _ = line.partition("  #")
            if command.startswith("pip install"):
                continue  # whoever runs this test has done so
            done = subprocess.run(
                command,
                shell=True,
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            said.setdefault(command.strip(), []).append(done.stdout + done.stderr)

    first, second = said["python flow.py"]
    assert "loading" in first.splitlines()
    assert "loading" not in second.splitlines()
    assert "Cached" in second
    assert all("499999500000" in each for each in (first, second))
    (listed,) = said["zfast store ls --basepath ~/results"]
    # The task's once, and those of two runs of the flow.
    stored = [path.name for path in (tmp_path / "results").iterdir() if path.is_file()]
    assert len(stored) == 3
    assert all(name in listed for name in stored)
