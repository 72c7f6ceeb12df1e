"""A million rows: memory and time of lint, tokenisation and the first step of training.

    python benchmarks/large_data.py --rows 1000000 --form text

Each command is a process of its own; memory is the largest resident set of the command and its children. The
first `lint --model` tokenises the rows and keeps the tokens; what comes after finds them. The tokenizer is
that of --model, the model that trains is tiny, with a tokenizer of its own.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = (
    "order parcel refund page item address please check status ship late return box size color number".split()
)


def write_rows(file: Path, rows: int, form: str) -> None:
    """`rows` rows of about 180 tokens: a prompt of 50 words, an answer of 90."""
    draw = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for at in range(rows):
            prompt = f"{at} {' '.join(draw.choices(WORDS, k=50))}"
            completion = " ".join(draw.choices(WORDS, k=90))
            row: dict[str, object] = {"label": at % 2 == 0}
            if form == "text":
                row |= {"prompt": prompt, "completion": completion}
            else:
                row["messages"] = [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": completion},
                ]
            out.write(json.dumps(row) + "\n")


def measure(name: str, command: list[str], home: Path) -> None:
    """Run one command in a process that reports its children's memory, and print a line."""
    script = (
        "import json, resource, subprocess, sys;"
        "code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL);"
        "print(json.dumps([code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))"
    )
    began = time.monotonic()
    answer = subprocess.run(
        [sys.executable, "-c", script, *command],
        env=os.environ | {"KTO_SWEEP_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    code, kib = json.loads(answer.stdout.splitlines()[-1])
    print(
        f"{name:<34} {time.monotonic() - began:7.1f} s {kib / 2**20:6.2f} GiB   exit code {code}", flush=True
    )


def main() -> None:
    """Measure every command once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--form", choices=("text", "messages"), default="text")
    parser.add_argument("--model", default="tiny", help="whose tokenizer counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, home = folder / "rows.jsonl", folder / "home"
        write_rows(rows, options.rows, options.form)
        kto = [sys.executable, "-m", "kto_sweep"]
        train = [
            "--local-file",
            str(rows),
            "--max-steps",
            "2",
            "--local",
            "--cpu",
            "--eval-fraction",
            "0.0001",
        ]
        print(f"{options.rows:,} rows as {options.form}, {rows.stat().st_size / 2**30:.2f} GiB")
        measure("lint", [*kto, "lint", str(rows)], home)
        measure("lint --model", [*kto, "lint", str(rows), "--model", options.model], home)
        measure("lint --model, tokens kept", [*kto, "lint", str(rows), "--model", options.model], home)
        measure("train, two steps", [*kto, "train", "--model-size", "tiny", *train], home)
        measure("train, two steps, tokens kept", [*kto, "train", "--model-size", "tiny", *train], home)


if __name__ == "__main__":
    main()
