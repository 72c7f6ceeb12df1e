"""One large file through an artifact: seconds up and down, and the memory of the embedded server.

    python benchmarks/artifact.py                      # 10 GB; needs 30 GB of disk
    python benchmarks/artifact.py --gigabytes 0.1

The wandb SDK uploads random bytes (in parts from 2 GiB on), and downloads them; the contents are compared.
Server, client and file are on this machine, so the disk is shared too.
"""

import argparse
import filecmp
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server, stop_server

BLOCK = 1 << 20
UPLOAD = """
import time
import wandb

began = time.monotonic()
with wandb.init(entity="local", project="large", id="logs") as run:
    artifact = wandb.Artifact("large", type="dataset")
    artifact.add_file("sent.bin", policy="immutable", skip_cache=True)
    run.log_artifact(artifact)
    artifact.wait()
print(f"SECONDS {time.monotonic() - began:.1f}")
"""
DOWNLOAD = """
import time
import wandb

began = time.monotonic()
wandb.Api().artifact("local/large/large:v0").download("got", skip_cache=True)
print(f"SECONDS {time.monotonic() - began:.1f}")
"""


def peak_mib(folder: Path) -> float:
    """The most memory that the server of the home in `folder` has had, in MiB."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            if b"kto_sweep.server" in command and os.fsencode(folder) in command:
                peak = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
                return int(peak[1]) / 1024 if peak else 0.0
        except OSError:  # it has just ended
            continue
    raise SystemExit(f"no server of {folder} is running")


def timed(script: str, folder: Path, environ: dict[str, str]) -> float:
    """Seconds of a script, which prints them: without the imports."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.rpartition("SECONDS ")[2])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10.0, help="10^9 bytes each")
    size = int(parser.parse_args().gigabytes * 1e9)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = Home(folder / "home")
        server = ensure_server(home)
        environ = os.environ | {
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": server.key,
            "WANDB_DATA_DIR": name,
            "WANDB_CACHE_DIR": name,
            "WANDB_SILENT": "true",
        }
        try:
            with (folder / "sent.bin").open("wb") as file:
                for left in range(size, 0, -BLOCK):
                    file.write(os.urandom(min(BLOCK, left)))
            before = peak_mib(home.root)
            print("| | seconds | MB/s | server's peak, MiB |\n|---|---|---|---|")
            print(f"| started | | | {before:.0f} |")
            for what, script in (("up", UPLOAD), ("down", DOWNLOAD)):
                seconds = timed(script, folder, environ)
                print(f"| {what} | {seconds:.1f} | {size / 1e6 / seconds:.0f} | {peak_mib(home.root):.0f} |")
            same = filecmp.cmp(folder / "sent.bin", folder / "got" / "sent.bin", shallow=False)
            print(f"\n{size:,} bytes: {'equal' if same else 'DIFFERENT'}")
        finally:
            stop_server(home)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
