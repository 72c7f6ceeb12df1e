"""A sweep file's parameters as they are registered, with a notice for each change.

Text that means a number becomes one: YAML 1.1, which W&B uses too, reads 5e-7 as text because it has no
decimal point. A value that is listed twice, such as 1e-4 and 0.0001, is registered once: W&B would train it
twice, or not, depending on how it is written.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kto_sweep.search.distributions import value_key
from kto_sweep.search.space_parser import convert_numbers
from kto_sweep.sweep_file.yaml_source import Path
from kto_sweep.text import show, yaml_form
from kto_sweep.trial import check_value, parameter_name


def normalise_section(section: Mapping[str, Any], path: Path = ()) -> tuple[dict[str, Any], list[str]]:
    """A checked `parameters` section as it is registered, and the notices."""
    converted: dict[str, Any] = {}
    notices: list[str] = []
    for name, body in section.items():
        here = (*path, name)
        if "parameters" in body:
            inner, inner_notices = normalise_section(body["parameters"], here)
            converted[name] = {**body, "parameters": inner}
            notices += inner_notices
        else:
            entry = _convert_entry(body, here)
            notices += _notice(here, list(_changed(body, entry)))
            converted[name] = _without_duplicates(entry)
            notices += _duplicate_notices(here, body, entry)
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


def _without_duplicates(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with each of its values once; equal values' probabilities are added up."""
    if "values" not in entry:
        return dict(entry)
    firsts: dict[object, Any] = {}
    shares: dict[object, float] = {}
    for at, value in enumerate(entry["values"]):
        key = value_key(value)
        firsts.setdefault(key, value)
        if "probabilities" in entry:
            shares[key] = shares.get(key, 0) + entry["probabilities"][at]
    distinct = {**entry, "values": list(firsts.values())}
    return {**distinct, "probabilities": list(shares.values())} if shares else distinct


def _duplicate_notices(path: Path, body: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterator[str]:
    """A notice for each value that the file lists several times."""
    written: dict[object, list[str]] = {}
    for before, after in zip(body.get("values", ()), entry.get("values", ()), strict=True):
        written.setdefault(value_key(after), []).append(show(before))
    for spellings in written.values():
        if len(spellings) > 1:
            different = " = ".join(dict.fromkeys(spellings))
            yield f"{'.'.join(path)}: {different} is listed {len(spellings)} times and counts once"


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
