"""The GraphQL documents that the installed wandb sends, taken from its Python modules and its Go binary."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from graphql import DocumentNode, GraphQLSyntaxError, OperationDefinitionNode, parse

_HEADER = re.compile(r"(query|mutation)\s+([A-Za-z_]\w*)\s*[({]")
_FRAGMENT = re.compile(r"\s*fragment\s+\w+\s+on\s+\w+\s*\{")
LONGEST = 20_000


@dataclass(frozen=True)
class Document:
    """One document and its source file."""

    source: str
    """`wandb-core`, or the Python module's path below the package."""
    names: tuple[str, ...]
    text: str
    tree: DocumentNode


def installed_documents() -> list[Document]:
    """Every complete document of the installed wheel, each once, by source."""
    spec = find_spec("wandb")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    documents = [*_from_binary(package / "bin" / "wandb-core"), *_from_modules(package)]
    return list(
        {(document.names, " ".join(document.text.split())): document for document in documents}.values()
    )


def _from_modules(package: Path) -> Iterator[Document]:
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _HEADER.search(node.value):
                yield from _document(str(path.relative_to(package)), node.value)


def _from_binary(path: Path) -> Iterator[Document]:
    """Documents among the binary's strings: from the header to the brace that closes the last fragment."""
    content = path.read_bytes().decode("latin-1")
    for match in _HEADER.finditer(content):
        end = _end_of_block(content, match.start())
        while end is not None and (fragment := _FRAGMENT.match(content, end)):
            end = _end_of_block(content, fragment.start())
        if end is not None:
            yield from _document("wandb-core", content[match.start() : end])


def _end_of_block(content: str, start: int) -> int | None:
    """Where the first `{` from `start` on is closed."""
    depth = 0
    for position in range(start, min(start + LONGEST, len(content))):
        if content[position] == "{":
            depth += 1
        elif content[position] == "}":
            depth -= 1
            if depth == 0:
                return position + 1
    return None


def _document(source: str, text: str) -> Iterator[Document]:
    try:
        tree = parse(text)
    except GraphQLSyntaxError:
        return  # a template that Python fills in, or bytes that only look like a document
    names = tuple(
        definition.name.value
        for definition in tree.definitions
        if isinstance(definition, OperationDefinitionNode) and definition.name
    )
    if names:
        yield Document(source, names, text, tree)
