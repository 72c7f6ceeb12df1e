"""Random search: independent draws; it never ends."""

import random

from kto_sweep.search.space import Space, Value


def next_config(space: Space, rng: random.Random) -> dict[str, Value]:
    """A nested configuration with every parameter drawn from its distribution."""
    return space.config(
        {parameter.path: parameter.distribution.ppf(rng.random()) for parameter in space.searched}
    )
