"""JSON responses."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

JSON_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Json(JSONResponse):
    """A JSON response that browsers neither cache nor take for another type."""

    def __init__(
        self, content: Mapping[str, Any], status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(content, status_code, {**JSON_HEADERS, **(headers or {})})

    def render(self, content: Any) -> bytes:
        """ASCII only: names from clients may hold lone surrogates, which UTF-8 cannot encode."""
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Json:
    """An error in GraphQL's form, which wandb and the page both show."""
    return Json({"errors": [{"message": message}]}, status, headers)
