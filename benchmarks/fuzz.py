"""Send nearly valid requests to the embedded server: how many pass its checks, and what goes wrong?

    python benchmarks/fuzz.py --requests 2000 --seed 3

Requests are those of tests/server/request_fuzz.py. Exits with 1 if an answer is neither 200 nor 400, or
another run was changed.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "server"))

from request_fuzz import fuzz

from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server, stop_server


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2000, help="to each route")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        home = Home(Path(folder))
        server = ensure_server(home)
        try:
            passed, wrong = fuzz(server.url, server.key, options.requests, random.Random(options.seed))
        finally:
            stop_server(home)
    print(f"{'route':<20}{'requests':>10}{'passed':>10}")
    for route, count in passed.items():
        print(f"{route:<20}{options.requests:>10}{count:>10}")
    for what, count in wrong.items():
        print(f"{count} times: {what}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
