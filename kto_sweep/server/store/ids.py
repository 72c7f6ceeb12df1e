"""GraphQL global ids, and random names in W&B's style."""

import base64
import binascii
import random

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_ADJECTIVES = (
    "amber brave bright brisk calm clear crisp daring deft eager early fair fleet fresh gentle golden "
    "grand happy keen kind light lively lucid mellow mild neat noble patient polite proud quick quiet "
    "rapid ready shining silver smooth snowy solar steady still sunny swift tidy vivid warm wise young"
).split()
_NOUNS = (
    "acorn anchor arrow beacon birch brook canyon cedar cloud comet coral crane creek dawn delta ember "
    "falcon fern field flame forest galaxy glade harbor heron hill island lake lantern leaf lynx maple "
    "meadow moon oak orbit otter peak pine planet pond reef river robin sail shore sparrow star stone "
    "stream summit valley wave"
).split()


def new_name(rng: random.Random, length: int = 8) -> str:
    """A new run, sweep or agent id of lower-case letters and digits."""
    return "".join(rng.choices(_LETTERS, k=length))


def friendly_name(number: int, rng: random.Random) -> str:
    """A display name such as `steady-falcon-12` for the run numbered `number` in its project."""
    return f"{rng.choice(_ADJECTIVES)}-{rng.choice(_NOUNS)}-{number}"


def to_global(kind: str, row: int) -> str:
    """The GraphQL global id of row `row` of table `kind`."""
    return base64.b64encode(f"{kind}:v1:{row}".encode()).decode()


def from_global(kind: str, text: str) -> int | None:
    """The row of a global id; None when it is not an id of this kind."""
    try:
        id_kind, version, row = base64.b64decode(text, validate=True).decode().split(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    if id_kind != kind or version != "v1" or not row.isdecimal() or len(row) > 18:
        return None
    return int(row)
