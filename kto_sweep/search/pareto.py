"""The Pareto front: what is not beaten in everything at once."""

from collections.abc import Sequence


def front(losses: Sequence[Sequence[float]]) -> list[int]:
    """Positions of the rows that no other beats, in order; in every column less is better.

    One row beats another when it is nowhere worse and somewhere better; equal rows do not beat each other.
    """
    # In this order a row can be beaten by earlier ones alone, and if by any then by one of the front.
    found: list[int] = []
    for place in sorted(range(len(losses)), key=lambda place: tuple(losses[place])):
        if not any(_beats(losses[other], losses[place]) for other in found):
            found.append(place)
    return sorted(found)


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)
