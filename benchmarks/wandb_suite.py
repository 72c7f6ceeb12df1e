"""wandb's own system tests against the embedded server: how much of what they ask for it does.

    git clone https://github.com/wandb/wandb CHECKOUT
    pip install 'pytest~=8.4' 'pytest-asyncio~=1.2' pytest-mock pytest-xdist pytest-timeout \
        pytest-rerunfailures responses respx pyte looptime hypothesis fastapi 'moto[s3]' \
        google-cloud-storage pyfakefs parameterized polars bokeh moviepy soundfile plotly matplotlib
    python benchmarks/wandb_suite.py CHECKOUT
    python benchmarks/wandb_suite.py CHECKOUT --only sweep,api -k history

The tests come from the checkout, the SDK is the installed one. Measured with the main branch of 2026-08-21
(b6e29505, 0.28.3.dev1), the newest public commit: there is none of wandb 0.31.

Only a test that uses wandb's server fixture can judge a server; the others are counted apart. "Not
applicable" are tests that wandb itself skips or expects to fail, that need another service or what this
server refuses, or that ask the SDK for what the installed one does not have. Exit code 0: the reach was met.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import wandb_suite_plugin as plugin

HERE = Path(__file__).parent
REACH = {"sweep": 0.995, "core": 0.995, "api": 0.995, "artifacts": 0.9}
"""Share of a family's tests that must pass, of those that can judge a server."""
OUTCOMES = ("passed", "failed", "not applicable")
ROW = "{:10} {:>7} {:>7} {:>15} {:>17}   {}"
TIMEOUT = 180
"""Seconds of a test."""


NOT_APPLICABLE = {
    r"test_offline_compression|test_very_long_output": "SDK differs: no `wandb sync --view`; offline runs",
    r"test_sync_with_tensorboard": "SDK differs: `wandb sync` no longer reads TensorBoard files",
    "test_organization_by_name": "needs organizations",
    r"test_storage_policy_storage_region": "needs a second storage region",
}
"""Reasons by a regular expression for the names of tests."""
BUCKET = "wandb-artifacts-refs-public-test.s3-us-west-2.amazonaws.com"
NEEDS_NETWORK = "|".join(
    (
        r"\[audio_ref_",
        r"test_wandb_artifact_(config_update|config_set_item|init_config)",
        "test_reference_download",
    )
)
"""Tests that read a public bucket, which take minutes to fail without a network."""
SDK_DIFFERS = (
    r"AttributeError: <?module 'wandb[\w.]*'.* has no attribute '(\w+)'",
    r"AttributeError: '(?:Noop)?Run' object has no attribute '(\w+)'",
    r"AttributeError: '\w+Cache' object has no attribute '(\w+)'",
    r"ValidationError: 1 validation error for Settings (\w+) Extra inputs are not permitted",
    r"ValueError: (wandb.Video) requires a `format` argument",
    r"1 validation error for ArtifactMembershipFragment (createdAt) Field required .*PLACEHOLDER",
)
"""Failures of tests that ask the SDK for what the installed one does not have, or imitate an older server."""


@dataclass(frozen=True)
class Result:
    """A test with what came of it."""

    test: str
    """Its name below tests/system_tests."""
    outcome: str
    """passed, failed or not applicable."""
    line: str
    """The failure's last line, or the reason."""
    has_server: bool
    """Whether it uses wandb's server fixture."""

    @property
    def family(self) -> str:
        """The folder's name without test_."""
        return self.test.split("/")[0].removeprefix("test_")


def main() -> int:
    options = _options()
    families = options.only.split(",")
    with tempfile.TemporaryDirectory(prefix="kto-sweep-suite-") as folder:
        results = options.log or Path(folder, "results.jsonl")
        results.unlink(missing_ok=True)
        with _server(Path(folder, "home")) as port:
            paths = [f"tests/system_tests/test_{family}" for family in families]
            _run_tests(options, Path(folder), port, paths, results.resolve())
        found = list(_results(results))
    if not found:
        print("Error: no test ran", file=sys.stderr)
        return 2
    return 0 if report(found) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="a checkout of wandb's repository")
    parser.add_argument("--only", default=",".join(REACH), help="families, with commas; default: %(default)s")
    parser.add_argument("-k", metavar="EXPRESSION", help="run only these tests, as for pytest")
    parser.add_argument("-n", default="2", help="test processes; default: %(default)s")
    parser.add_argument(
        "--log", type=Path, help="keep each result with its traceback in this file (JSON lines)"
    )
    options = parser.parse_args()
    if not (options.checkout / "tests/system_tests/backend_fixtures.py").is_file():
        parser.error(
            f"{options.checkout} is not a checkout of wandb: git clone https://github.com/wandb/wandb"
        )
    if unknown := set(options.only.split(",")) - set(REACH):
        parser.error(f"--only {','.join(sorted(unknown))}: choose from {', '.join(REACH)}")
    return options


@contextmanager
def _server(home: Path) -> Iterator[int]:
    """The port of a server with an empty home."""
    command = [sys.executable, str(HERE / "wandb_suite_server.py"), str(home)]
    server = subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield json.loads(server.stdout.readline())["port"]
    finally:
        server.terminate()
        server.wait()


def _environment() -> dict[str, str]:
    """This process's environment without wandb's settings, and with our modules."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "PYTEST_"))}
    return kept | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}


def _run_tests(
    options: argparse.Namespace, folder: Path, port: int, paths: Sequence[str], results: Path
) -> None:
    # Only the tests: beside the checkout's own wandb, Python would import that one.
    tree = folder / "checkout"
    shutil.copytree(options.checkout / "tests", tree / "tests")
    shutil.copy(options.checkout / "pyproject.toml", tree)
    environ = _environment() | {
        plugin.PORT: str(port),
        plugin.RESULTS: str(results),
        plugin.REASONS: json.dumps(_not_applicable()),
        "HOME": str(folder),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "wandb_suite_plugin", "-p", "no:cacheprovider"]
    command += [
        "-n",
        options.n,
        "--timeout",
        str(TIMEOUT),
        "--tb",
        "short",
        "--basetemp",
        str(folder / "tmp"),
    ]
    command += ["-k", options.k] if options.k else []
    subprocess.run([*command, *paths], cwd=tree, env=environ, check=False)


def _not_applicable() -> dict[str, str]:
    """Reasons not to run tests, by a regular expression for their names."""
    try:
        socket.create_connection((BUCKET, 443), timeout=5).close()
    except OSError:
        return NOT_APPLICABLE | {NEEDS_NETWORK: f"needs a network ({BUCKET})"}
    return NOT_APPLICABLE


def _results(path: Path) -> Iterator[Result]:
    """The last outcome of each test; one that failed and then passed when repeated has passed."""
    entries = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )
    for entry in {entry["test"]: entry for entry in entries}.values():
        outcome, line = entry["outcome"], entry["line"]
        if outcome == "failed" and (name := _missing_in_sdk(line)):
            outcome, line = "not applicable", f"SDK differs: {name}"
        if outcome not in ("passed", "failed"):
            outcome = "not applicable"
        yield Result(entry["test"].removeprefix("tests/system_tests/"), outcome, line, entry["server"])


def _missing_in_sdk(line: str) -> str | None:
    """What a failed test asked the SDK for; None for other failures."""
    matches = (re.search(pattern, line) for pattern in SDK_DIFFERS)
    return next((match[1] for match in matches if match), None)


def report(found: Sequence[Result]) -> bool:
    """Prints the table, the reasons and the failures; whether the reach was met in each family."""
    judging = [result for result in found if result.has_server]
    families = list(dict.fromkeys(result.family for result in found))
    is_met = True
    print(f"\nwandb {version('wandb')}\n")
    print(ROW.format("tests", "passed", "failed", "not applicable", "without a server", "reach"))
    for family in families:
        counts = Counter(result.outcome for result in judging if result.family == family)
        others = sum(result.family == family and not result.has_server for result in found)
        total, goal, reach = counts["passed"] + counts["failed"], REACH[family], "-"
        if total:
            share = counts["passed"] / total
            is_met &= share >= goal
            reach = f"{share:.1%} {'of' if share >= goal else 'BELOW'} {goal:.1%}"
        print(ROW.format(family, *(counts[outcome] for outcome in OUTCOMES), others, reach))
    _print_not_applicable(judging)
    failed = [result for result in found if result.outcome == "failed"]
    _print_failures("Failed", [result for result in failed if result.has_server])
    _print_failures("Failed without a server", [result for result in failed if not result.has_server])
    return is_met


def _print_not_applicable(judging: Sequence[Result]) -> None:
    reasons = Counter(result.line for result in judging if result.outcome == "not applicable")
    if reasons:
        print("\nNot applicable")
    for reason, count in reasons.most_common():
        print(f"{count:5}  {reason}")


def _print_failures(title: str, results: Sequence[Result]) -> None:
    if results:
        print(f"\n{title}")
    for result in results:
        print(f"  {result.test}\n      {result.line}")


if __name__ == "__main__":
    sys.exit(main())
