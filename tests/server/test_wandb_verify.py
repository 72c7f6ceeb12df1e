"""`wandb verify`, W&B's check of a server of one's own, from end to end over https."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine
from sdk_scripts import SETTINGS, start_script

from kto_sweep.local_server.start import running_server

VERIFY = """
import os
from wandb.cli import cli
cli.verify(["--host", os.environ["WANDB_BASE_URL"]])
"""
CHECKS = """
logged in
signed URL upload
ability to send large payloads through proxy
requests to base url
requests made over signed URLs
CORs configuration of the bucket
wandb package version is up to date
logged metrics, saving and downloading a file
artifact save and download workflows
sweep creation and agent execution
"""


@pytest.fixture
def https_machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine that trusts the certificate of its server."""
    machine = Machine(tmp_path / "machine")
    machine.home.root.mkdir(parents=True)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files],
        check=True,
        capture_output=True,
    )
    command = [sys.executable, "-m", "kto_sweep.server", "--home", str(machine.home.root), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--certificate", str(certificate), "--certificate-key", str(key)], env=machine.environment
    )
    while (server := running_server(machine.home)) is None:
        assert process.poll() is None
        time.sleep(0.05)
    machine.environ |= SETTINGS | {
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": server.key,
        "SSL_CERT_FILE": str(certificate),  # of wandb's Go process
        "REQUESTS_CA_BUNDLE": str(certificate),
    }
    yield machine
    machine.close()
    process.wait()


@pytest.mark.slow  # the checks are those of other tests with the SDK, one by one
def test_each_check_of_wandb_verify_passes(https_machine: Machine) -> None:
    process = start_script(https_machine, VERIFY)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    checks = [line for line in output.splitlines() if line.startswith("Checking ")]
    assert [
        line.rstrip("✅").removeprefix("Checking ").removeprefix("if ").rstrip(".") for line in checks
    ] == (CHECKS.strip().splitlines()), output
    assert all(line.endswith("✅") for line in checks), output
