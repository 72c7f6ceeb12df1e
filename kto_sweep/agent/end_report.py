"""What a command that trains did, as one JSON object on standard output at its end."""

import json
import os
import sys
from typing import IO, Any, NoReturn, cast

from kto_sweep.agent.progress import SafeStdout


class EndReport:
    """Collects the fields of the object; without --json it prints nothing."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json
        self.fields: dict[str, Any] = {}

    @property
    def stream(self) -> IO[str]:
        """The stream for people: standard error if standard output is JSON."""
        return cast(IO[str], SafeStdout(sys.stderr if self._as_json else sys.stdout))

    def print(self, code: int) -> None:
        """Print the object, with the exit code of the command."""
        if self._as_json:
            stdout = SafeStdout(sys.stdout)
            stdout.write(json.dumps({**self.fields, "exit_code": code}, indent=2) + "\n")
            stdout.flush()

    def exit_at_once(self, code: int) -> NoReturn:
        """Print the object and exit without libraries' exit handlers.

        wandb's would wait for an unreachable server.
        """
        self.print(code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
