"""The fingerprint of held-out rows: trials that have the same one are judged on the same rows."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields

from kto_sweep.data.rows import Example

_PLACE = frozenset({"line", "file"})
"""Fields of an example that say where it is, not what it is."""


def fingerprint_examples(examples: Iterable[Example], cut_to: int | None) -> str:
    """16 hex digits that change with the text, the label or the order of any row, and with `cut_to`.

    `cut_to` is max_length if it cuts any of the rows, else None. The text is that of the data file: models
    with other tokenizers and chat templates are judged on the same rows, which is what eval/common_loss
    compares across models.
    """
    digest = hashlib.sha256(str(cut_to).encode())
    for example in examples:
        row = [getattr(example, field.name) for field in fields(example) if field.name not in _PLACE]
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
