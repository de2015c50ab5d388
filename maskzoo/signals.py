"""The signals that stop a run between two steps, and how they are kept from those whom they do not concern."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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


@contextmanager
def listening(hear: Callable[[int], None]) -> Iterator[None]:
    """Have `hear` told the number of each signal that stops a run, and then whoever listened before.

    The latter is such as a comparison, which is not to begin its next run. Only the main thread may listen; elsewhere
    this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def tell(number: int, frame: Any) -> None:
        hear(number)
        whoever = before[number]
        if callable(whoever) and whoever is not signal.default_int_handler:
            whoever(number, frame)

    before = {getattr(signal, name): signal.signal(getattr(signal, name), tell) for name in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
