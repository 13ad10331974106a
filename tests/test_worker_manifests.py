"""The example manifests of ``zfast worker``: they parse, and their commands are commands."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from zfast.cli.app import app
from zfast.security.settings import SecuritySettings

WORKERS = Path(__file__).parents[1] / "examples" / "workers"


def check_command(words):
    """It is a command line that ``zfast`` takes."""
    assert Path(words[0]).name == "zfast"
    app.parse_args(words[1:], exit_on_error=False, print_error=False)


def test_the_deployment_is_one_and_runs_a_worker():
    deployment = yaml.safe_load((WORKERS / "kubernetes.yaml").read_text())
    spec = deployment["spec"]["template"]["spec"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= (
        deployment["spec"]["template"]["metadata"]["labels"].items()
    )
    (container,) = spec["containers"]
    check_command(container["command"])
    known = {f"ZFAST_{name}".upper() for name in SecuritySettings.model_fields}
    assert {variable["name"] for variable in container["env"]} <= known
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["volumes"]}
    assert spec["volumes"][0]["secret"]["defaultMode"] == 0o400


def test_the_unit_is_one_and_runs_a_worker(tmp_path):
    text = (WORKERS / "zfast-worker.service").read_text()
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string(text)
    command = shlex.split(unit["Service"]["ExecStart"])
    check_command(command)
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not here to say what it thinks of it")
    # It looks for the program and the user, which are those of another host.
    text = text.replace(command[0], sys.executable).replace("User=flows\n", "")
    (tmp_path / "zfast-worker.service").write_text(text)
    verified = subprocess.run(
        [analyze, "verify", "--man=no", tmp_path / "zfast-worker.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "zfast-worker.service" not in verified.stdout + verified.stderr
