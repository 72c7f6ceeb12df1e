"""A YAML file as data, with the line of every value, and everything that keeps it from being read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

Path = tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One thing wrong at one place of a file."""

    path: Path
    """Keys from the top of the file; list positions as text, from "0"."""
    what: str
    """What is wrong, with the value."""
    why: str = ""
    """One sentence: the rule that it breaks."""
    hint: str = ""
    """What to type instead."""
    line: int | None = None
    """Line in the file, counted from 1; None: that of `path`."""


@dataclass(frozen=True)
class YamlSource:
    """What a file says, and where."""

    data: Any
    """dicts, lists, numbers, texts, bools and None, as YAML 1.1 reads them."""
    lines: Mapping[Path, int]
    """Line of each value, counted from 1; of a block below its key, the line of the key."""

    def line(self, path: Path) -> int:
        """The line of a value, or of the innermost part of its path that the file has."""
        return next(self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which leaves dates as the text that a person wrote."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own shape
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_yaml(text: str) -> tuple[YamlSource | None, list[Finding]]:
    """The file's data and lines, or None and what is wrong with it as YAML."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return YamlSource(None, {(): 1}), []
        lines: dict[Path, int] = {(): node.start_mark.line + 1}
        findings = list(_walk(node, (), lines, ()))
        if findings:
            return None, findings
        return YamlSource(loader.construct_document(node), lines), []
    except yaml.MarkedYAMLError as error:
        return None, [_syntax(error)]
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # characters that YAML forbids; numbers beyond Python's limits
        return None, [Finding((), f"not YAML: {str(error).splitlines()[0]}", line=1)]
    finally:
        if loader is not None:
            loader.dispose()


def _walk(
    node: yaml.Node, path: Path, lines: dict[Path, int], parents: tuple[yaml.Node, ...]
) -> Iterator[Finding]:
    """Fill `lines` below a node; yields duplicate keys, and blocks that hold themselves."""
    if node in parents:
        yield Finding(path, "this block holds itself", line=node.start_mark.line + 1)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            here = (*path, str(i))
            lines[here] = item.start_mark.line + 1
            yield from _walk(item, here, lines, (*parents, node))
    elif isinstance(node, yaml.MappingNode):
        yield from _walk_mapping(node, path, lines, (*parents, node))


def _walk_mapping(
    node: yaml.MappingNode, path: Path, lines: dict[Path, int], parents: tuple[yaml.Node, ...]
) -> Iterator[Finding]:
    first_seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            yield from _walk(value, path, lines, parents)
            continue
        name = str(key.value)
        here = (*path, name)
        if name in first_seen:
            what = f"{name} stands here and in line {first_seen[name]}"
            yield Finding(here, what, "YAML keeps the last of two, silently.", "remove one", line)
        first_seen.setdefault(name, line)
        lines[here] = line if _is_below_its_key(value) else value.start_mark.line + 1
        yield from _walk(value, here, lines, parents)


def _is_below_its_key(value: yaml.Node) -> bool:
    """True for a block, and for nothing at all: a person looks for both at the key."""
    if isinstance(value, yaml.CollectionNode):
        return not value.flow_style
    return value.start_mark.index == value.end_mark.index


def _syntax(error: yaml.MarkedYAMLError) -> Finding:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    said = error.problem or error.context or "cannot be read"
    context = f"{error.context[0].upper()}{error.context[1:]}." if error.problem and error.context else ""
    return Finding((), f"column {column}: not YAML: {said}", context, _syntax_hint(said), line)


def _syntax_hint(said: str) -> str:
    if "'\\t'" in said:
        return "indent with spaces, not with tabs"
    if "mapping values are not allowed" in said:
        return "check the indentation, or put a text that holds a colon in quotes"
    if "expected ',' or ']'" in said or "expected ',' or '}'" in said:
        return "close the bracket"
    if "another document" in said:
        return "one sweep to a file: remove ---"
    return ""
