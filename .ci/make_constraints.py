"""Writes constraints.txt: the version of every package that `make` installs, on each Python it supports.

    .venv/bin/python .ci/make_constraints.py              # keeps the present versions, adds what is new
    .venv/bin/python .ci/make_constraints.py --upgrade    # takes the newest versions; then run: make test

pip resolves for each Python without installing anything.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "constraints.txt"
PYTHONS = ("3.11", "3.12", "3.13")
OF_TORCH = re.compile(r"nvidia-|cuda-|triton$|kto-sweep$")
"""torch requires one version of each of these, and a build of torch for CPUs none."""
HEAD = """\
# Every version that the Makefile installs, with which the tests have passed: a new release of one of them
# breaks nothing until it is tried here. Made by .ci/make_constraints.py. The package itself takes what
# pyproject.toml says, torch 2.11 and transformers 5.17 among it.
"""


def resolve(python: str, *, upgrade: bool) -> dict[str, str]:
    """The version of each package by normalised name, for this version of Python on Linux."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
            *("--report", str(report), "--target", folder),
            *("--python-version", python, "--only-binary=:all:"),
            *(() if upgrade else ("-c", str(FILE))),
            ".[dev]",
        ]
        subprocess.run(command, cwd=ROOT, check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    about = [package["metadata"] for package in found]
    return {re.sub(r"[-_.]+", "-", each["name"]).lower(): each["version"] for each in about}


def lines(versions: dict[str, dict[str, str]]) -> list[str]:
    """A line per package; per Python where their versions differ. `versions`: by Python, then by name."""
    pythons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for python, packages in versions.items():
        for name, version in packages.items():
            if not OF_TORCH.match(name):
                # Builds of torch for CPUs and for each CUDA differ in their local version.
                pythons[name, version.partition("+")[0]].append(python)
    made = []
    for (name, version), where in sorted(pythons.items()):
        marker = "" if len(where) == len(versions) else f'; python_version in "{" ".join(where)}"'
        made.append(f"{name}=={version}{marker}")
    return made


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--upgrade", action="store_true")
    upgrade = parser.parse_args().upgrade
    versions = {python: resolve(python, upgrade=upgrade) for python in PYTHONS}
    FILE.write_text(HEAD + "\n".join(lines(versions)) + "\n", encoding="utf-8")
    print(f"Wrote {FILE}: {len(lines(versions))} packages")


if __name__ == "__main__":
    main()
