"""The processes that load images: how they are started and ended, and what is told where they die.

A worker holds back SIGTERM, so none may outlive the loader that started it.
"""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import multiprocessing.util  # whose exit hook must be there before ours
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeVar
from weakref import WeakSet

import torch.utils.data

from maskzoo.errors import DataError
from maskzoo.signals import restore, signals_held

T = TypeVar("T")
SHUTDOWN = 2.0  # seconds that workers have to end by themselves


def loader_trouble(error: BaseException) -> DataError | None:
    """What to tell of an error that torch raises for a loader's worker, or None where it is about something else.

    A dead worker is not always noticed where its batch is asked for: torch raises in whatever the main process happens
    to be doing, so whoever trains on batches asks here too.
    """
    if not isinstance(error, RuntimeError | OSError):
        return None
    told = [error, *([error.__cause__] if isinstance(error.__cause__, RuntimeError) else [])]  # by which signal
    text = " ".join("; ".join(str(one) for one in told).split())
    torchs_file = "/torch_" in text or "shared memory" in text
    if "Bus error" in text or (torchs_file and ("unable to" in text or "No space left" in text)):
        return DataError(
            f"the shared memory through which the loader's workers hand over their batches has run out ({text}); lower "
            "recipe.train.workers or recipe.train.batch_size, or enlarge /dev/shm (for a container: --shm-size)"
        )
    if (isinstance(error, OSError) and error.errno == errno.EMFILE) or "Too many open files" in text:
        return DataError(
            f"the loader's workers have more files open than the system allows ({text}); raise the limit (ulimit -n) "
            "or lower recipe.train.workers"
        )
    if "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text):
        return _dead_worker(text)
    return None


def _dead_worker(text: str) -> DataError:
    return DataError(
        f"a worker process of the data loader has died ({text}); most often the system has killed it because memory "
        "ran out: lower recipe.train.workers or recipe.train.batch_size, or free memory, and go on with --resume; "
        "after a bus error it was shared memory: enlarge /dev/shm (for a container: --shm-size)"
    )


def loaded(loader: torch.utils.data.DataLoader[T]) -> Generator[T, None, None]:
    """What the loader gives; DataError where a worker dies or shared memory runs out. No worker outlives it."""
    opened = _loaded(loader)
    _open.add(opened)
    return opened


_open: WeakSet[Generator[Any, None, None]] = WeakSet()


@atexit.register  # after multiprocessing's, which is imported above, so before it
def _close_all() -> None:
    """End the workers that an error keeps alive to the last: they hold SIGTERM back, and Python would wait for ever."""
    for opened in list(_open):
        with suppress(ValueError, RuntimeError):  # it is at work in a thread of its own
            opened.close()


def _loaded(loader: torch.utils.data.DataLoader[T]) -> Generator[T, None, None]:
    others = set(multiprocessing.active_children())
    iterator: Iterator[T] | None = None
    try:
        with signals_held() if loader.num_workers else nullcontext():  # its workers are started here
            iterator = iter(loader)
        yield from iterator
    except Exception as error:
        if loader.num_workers:
            _forget_frames(error)
        trouble = loader_trouble(error)
        if trouble is None and loader.num_workers and isinstance(error, ConnectionError | EOFError):
            trouble = _dead_worker(f"{type(error).__name__}: {error}".removesuffix(": "))
        if trouble is None:
            raise
        raise trouble from error
    finally:
        with _no_word_of_dead_workers():
            workers = set(multiprocessing.active_children()) - others
            with _killed_after(SHUTDOWN, workers):
                del iterator  # torch asks them to end, and waits for each
            for worker in workers:
                # After the death of one the others may wait for ever, deaf to SIGTERM, and the program's end for them.
                worker.kill()


@contextmanager
def _killed_after(seconds: float, workers: Iterable[multiprocessing.process.BaseProcess]) -> Iterator[None]:
    """Kill workers that are still there after a while inside: one that is in the middle of a long read hears nothing.

    Not at once: one that dies while it holds a lock of torch's would keep torch waiting for ever.
    """

    def kill() -> None:
        for worker in workers:
            worker.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    if workers:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _no_word_of_dead_workers() -> Iterator[None]:
    """Keep torch, which listens for the ends of processes, from raising for a worker while they are being ended."""
    if threading.current_thread() is not threading.main_thread():
        yield  # it listens in the main thread alone
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        restore(signal.SIGCHLD, before)


def _forget_frames(error: BaseException | None) -> None:
    """Drop torch's frames from an error: they hold the loader, so the workers would live on as long as the error.

    What happened in a worker is in the error's words. Left to the collector of cycles, each worker takes 5 s to end.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def as_it_is(packed: Any) -> Any:
    """What a loader is to make of a request's answer."""
    return packed
