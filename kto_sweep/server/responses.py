"""JSON and HTML responses."""

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, JSONResponse

HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

_templates = Environment(
    loader=PackageLoader("kto_sweep.server"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Json(JSONResponse):
    """A JSON response that browsers neither cache nor take for another type."""

    def __init__(
        self, content: Mapping[str, Any], status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(content, status_code, {**HEADERS, **(headers or {})})

    def render(self, content: Any) -> bytes:
        """ASCII only: names from clients may hold lone surrogates, which UTF-8 cannot encode."""
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Json:
    """An error in GraphQL's form, which wandb and the page both show."""
    return Json({"errors": [{"message": message}]}, status, headers)


def html(template: str, policy: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page from a template under the content security policy."""
    headers = {**HEADERS, "content-security-policy": policy, "referrer-policy": "no-referrer"}
    return HTMLResponse(_templates.get_template(template).render(values), status, headers)
