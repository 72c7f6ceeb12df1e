"""A YAML file as data with the line of every value, or its YAML errors."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from kto_sweep.errors import Problem

Path = tuple[str, ...]

MAX_DEPTH = 100
"""Lists and blocks within each other; Python's own limit is near 1,000 frames and not of the file."""
MAX_VALUES = 100_000
"""Values of a file with its aliases written out: aliases of aliases multiply."""
TOO_DEEP = f"lists or blocks nested more than {MAX_DEPTH} deep"


@dataclass(frozen=True)
class YamlSource:
    """The data of a YAML file, and the line of each value."""

    data: Any
    """Dicts, lists, numbers, strings, bools and None, as YAML 1.1 reads them."""
    lines: Mapping[Path, int]
    """Line of each value, counted from 1; for a block below its key, the line of the key."""
    shared_keys: frozenset[str] = frozenset()
    """Top-level keys that hold anchors which other top-level keys use."""

    def line(self, path: Path) -> int:
        """The line of a value, or of the innermost part of its path that the file has."""
        return next(self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but dates stay strings."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own shape
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node. Raises ComposerError where the text is nested too deep."""
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, TOO_DEEP, mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node. Raises ConstructorError, with its place, for thousands of digits."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            reason = str(error).partition(";")[0]
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from error


def read_yaml(text: str) -> tuple[YamlSource | None, list[Problem]]:
    """The file's data and lines, or None and its YAML errors."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return YamlSource(None, {(): 1}), []
        _measure(node, {})
        lines: dict[Path, int] = {(): node.start_mark.line + 1}
        problems = list(_walk(node, (), lines))
        if problems:
            return None, problems
        shared = _shared_keys(node)  # first: the constructor replaces merge keys by what they merge
        return YamlSource(loader.construct_document(node), lines, shared), []
    except yaml.MarkedYAMLError as error:
        return None, [_syntax(error)]
    except yaml.reader.ReaderError as error:  # characters that YAML forbids
        line = text.count("\n", 0, error.position) + 1
        return None, [Problem((), f"not YAML: {str(error).splitlines()[0]}", line=line)]
    except _Refused as refused:
        return None, [refused.problem]
    finally:
        if loader is not None:
            loader.dispose()


def _shared_keys(node: yaml.Node) -> frozenset[str]:
    """The top-level keys with a node that stands below another top-level key too, by an alias."""
    if not isinstance(node, yaml.MappingNode):
        return frozenset()
    owners: dict[int, set[str]] = {}
    for key, value in node.value:
        for below in _nodes(value, set()):
            owners.setdefault(id(below), set()).add(str(key.value))
    return frozenset().union(*(keys for keys in owners.values() if len(keys) > 1))


def _nodes(node: yaml.Node, seen: set[int]) -> Iterator[yaml.Node]:
    """A node and all nodes below it, each once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    yield node
    if isinstance(node, yaml.CollectionNode):
        for item in node.value:
            for child in item if isinstance(node, yaml.MappingNode) else (item,):
                yield from _nodes(child, seen)


class _Refused(Exception):
    """YAML that is valid, but that no sweep file can mean."""

    def __init__(self, node: yaml.Node, what: str, hint: str = "") -> None:
        self.problem = Problem((), what, hint=hint, line=node.start_mark.line + 1)


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values a node is with its aliases written out, and how deep they are nested.

    Looks at each node once. Raises _Refused for too many or too deep, and for a block that contains itself.
    """
    if id(node) not in known:
        known[id(node)] = None  # until it is measured, an alias of it is inside it
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        sizes = [_measure(child, known) for child in children]
        values, depth = 1 + sum(size[0] for size in sizes), max((1 + size[1] for size in sizes), default=0)
        if values > MAX_VALUES:
            what = f"more than {MAX_VALUES:,} values, with aliases (*name) written out"
            raise _Refused(node, what, "use fewer aliases of aliases")
        if depth > MAX_DEPTH:
            raise _Refused(node, f"{TOO_DEEP}, with aliases (*name) written out")
        known[id(node)] = values, depth
    size = known[id(node)]
    if size is None:
        raise _Refused(node, "this block contains itself")
    return size


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int]) -> Iterator[Problem]:
    """Fills `lines` below a node; yields a problem for each duplicate key."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            here = (*path, str(i))
            lines[here] = item.start_mark.line + 1
            yield from _walk(item, here, lines)
    elif isinstance(node, yaml.MappingNode):
        yield from _walk_mapping(node, path, lines)


def _walk_mapping(node: yaml.MappingNode, path: Path, lines: dict[Path, int]) -> Iterator[Problem]:
    first_seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            yield from _walk(value, path, lines)
            continue
        name = str(key.value)
        here = (*path, name)
        if name in first_seen:
            what = f"{name} is set here and in line {first_seen[name]}"
            yield Problem(here, what, "YAML silently keeps only the last one.", "remove one", line=line)
        first_seen.setdefault(name, line)
        lines[here] = line if _is_below_its_key(value) else value.start_mark.line + 1
        yield from _walk(value, here, lines)


def _is_below_its_key(value: yaml.Node) -> bool:
    """True for a block and for an empty value: users look for both at the key."""
    if isinstance(value, yaml.CollectionNode):
        return not value.flow_style
    return value.start_mark.index == value.end_mark.index


def _syntax(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    message = error.problem or error.context or "cannot be read"
    context = f"{error.context[0].upper()}{error.context[1:]}." if error.problem and error.context else ""
    return Problem((), f"column {column}: not YAML: {message}", context, _syntax_hint(message), line=line)


def _syntax_hint(message: str) -> str:
    if "'\\t'" in message:
        return "indent with spaces, not with tabs"
    if "mapping values are not allowed" in message:
        return "check the indentation, or quote text that contains a colon"
    if "expected ',' or ']'" in message or "expected ',' or '}'" in message:
        return "close the bracket"
    if "another document" in message:
        return "one sweep per file: remove ---"
    return ""
