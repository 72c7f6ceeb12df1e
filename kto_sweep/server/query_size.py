"""Limits depth and field count of a GraphQL query with its fragments expanded."""

from dataclasses import dataclass

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    OperationDefinitionNode,
    SelectionSetNode,
)

from kto_sweep.server.errors import RequestError

MAX_DEPTH = 25
"""Maximum nested selection sets; wandb's deepest query has 9."""
MAX_FIELDS = 2_000
"""Maximum fields; wandb's largest query has about 60."""


@dataclass(frozen=True)
class _Size:
    depth: int
    fields: int


def check_size(document: DocumentNode) -> None:
    """Raises RequestError for a query that is too deep or too large. The query must be valid (no cycles)."""
    fragments = {
        definition.name.value: definition
        for definition in document.definitions
        if isinstance(definition, FragmentDefinitionNode)
    }
    sizes: dict[str, _Size] = {}
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            _check(_measure(definition.selection_set, fragments, sizes))


def _measure(
    selections: SelectionSetNode | None, fragments: dict[str, FragmentDefinitionNode], sizes: dict[str, _Size]
) -> _Size:
    """Size of a selection set; `sizes` caches the size of each fragment."""
    depth, fields = 0, 0
    for selection in selections.selections if selections else ():
        if isinstance(selection, FragmentSpreadNode):
            name = selection.name.value
            if name not in sizes:
                sizes[name] = _measure(fragments[name].selection_set, fragments, sizes)
            inner, own = sizes[name], 0
        else:
            inner = _measure(getattr(selection, "selection_set", None), fragments, sizes)
            own = 1 if isinstance(selection, FieldNode) else 0
        depth = max(depth, inner.depth + own)
        fields += inner.fields + own
        _check(_Size(depth, fields))
    return _Size(depth, fields)


def _check(size: _Size) -> None:
    if size.depth > MAX_DEPTH:
        raise RequestError(f"the query is nested deeper than {MAX_DEPTH}")
    if size.fields > MAX_FIELDS:
        raise RequestError(f"the query asks for more than {MAX_FIELDS} fields")
