"""Converts text that means a number in a sweep file's parameters, with a notice.

YAML 1.1, which W&B uses too, reads 5e-7 as text because it has no decimal point.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kto_sweep.search.space_parser import convert_numbers
from kto_sweep.sweep_file.yaml_source import Path
from kto_sweep.text import yaml_form
from kto_sweep.trial import check_value, parameter_name


def convert_section(section: Mapping[str, Any], path: Path = ()) -> tuple[dict[str, Any], list[str]]:
    """A checked `parameters` section with text numbers converted, and a notice for each changed parameter."""
    converted: dict[str, Any] = {}
    notices: list[str] = []
    for name, body in section.items():
        here = (*path, name)
        if "parameters" in body:
            inner, inner_notices = convert_section(body["parameters"], here)
            converted[name] = {**body, "parameters": inner}
            notices += inner_notices
        else:
            converted[name] = _convert_entry(body, here)
            notices += _notice(here, list(_changed(body, converted[name])))
    return converted, notices


def _convert_entry(body: Mapping[str, Any], path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = convert_numbers(body)
    if "value" in entry:
        entry["value"] = _convert_value(entry["value"], path)
    if "values" in entry:
        entry["values"] = [_convert_value(value, path) for value in entry["values"]]
    return entry


def _convert_value(value: Any, path: Path) -> Any:
    """Text as the value that a trial holds for it; other values unchanged."""
    if isinstance(value, Mapping):
        return {key: _convert_value(inner, (*path, str(key))) for key, inner in value.items()}
    name = parameter_name(path)
    if not isinstance(value, str) or name is None:
        return value
    return check_value(name, value)[0]


def _changed(before: Any, after: Any) -> Iterator[str]:
    """Every text in `before` that is not text in `after`."""
    if isinstance(before, Mapping):
        for key in before:
            yield from _changed(before[key], after[key])
    elif isinstance(before, list):
        for old, new in zip(before, after, strict=True):
            yield from _changed(old, new)
    elif isinstance(before, str) and not isinstance(after, str):
        yield before


def _notice(path: Path, texts: list[str]) -> Iterator[str]:
    if texts:
        written, better = ", ".join(texts), ", ".join(yaml_form(text) for text in texts)
        yield (
            f"{'.'.join(path)}: YAML 1.1 reads {written} as text; registered as a number "
            f"(write {better} to silence this)"
        )
