"""Words of messages that more than one module needs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_NAME = 100  # letters of a name that are compared: the time grows with their square
LIKE = 0.6  # of two names, 1 being equal, from which one is offered for the other


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at what was meant: the nearest of the known names, or all of them."""
    known = list(known)
    best = likely(name, known)
    if best:
        return f"did you mean '{best}'?"
    return "known: " + ", ".join(known) if known else "none is known"


def likely(name: str, known: Iterable[str]) -> str:
    """The known name that is most like this one; empty where none is like it."""
    name = name[:LONGEST_NAME]

    def likeness(other: str) -> float:
        """Also to the beginning of a longer name: 'vit_tinny' is meant for 'vit_tiny_patch16_224'."""
        return max(difflib.SequenceMatcher(None, name, text).ratio() for text in (other, other[: len(name)]))

    best = max(known, key=lambda other: (likeness(other), -len(other)), default="")
    return best if best and likeness(best) >= LIKE else ""


def indefinite(kind: str) -> str:
    """A kind with its article: a strategy, an objective."""
    return f"{'an' if kind[0].lower() in 'aeio' else 'a'} {kind}"
