"""Where every random number comes from: a stream is a hash of (seed, role), so nothing needs saving to resume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stream_seed(seed: int, *role: object) -> int:
    """The 63-bit seed of the stream that `role` names, e.g. `stream_seed(0, "mask", step, "scores")`.

    Streams of different roles are independent; the same role gives the same numbers on every machine.
    """
    text = "\x1f".join(str(part) for part in (seed, *role))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(seed: int, *role: object) -> torch.Generator:
    """A CPU generator at the beginning of that stream; on the CPU so that every device draws alike."""
    return torch.Generator().manual_seed(stream_seed(seed, *role))


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator inside, for libraries that know no other, and leave it as it was."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)
