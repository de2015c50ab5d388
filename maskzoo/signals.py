"""The signals that stop a run between two steps, and how they are kept from those whom they do not concern."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")  # the last is what SLURM can be asked to send ahead of the time limit


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold the signals that stop a run back, and from the processes that are started inside for good.

    A terminal, or a cluster, sends them to the loader's workers too, whose death would be taken for an accident.
    """
    held = {getattr(signal, name) for name in STOP_SIGNALS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
