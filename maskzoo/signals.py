"""The signals that stop a program: heard from its first line to its last, and kept from processes of no concern.

Work that can be gone on with says so by `listening`: the first signal is acknowledged and the work ends when it can,
the second ends the program at once. Outside, the first one does. Nothing here waits for the main thread, which may be
deep in a library: a thread reads what the interpreter's own handler writes into a pipe.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maskzoo.plain import printable

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")  # the last is what SLURM can be asked to send ahead of the time limit
STOPPED = 75  # exit code of a program that a signal has ended; sysexits.h calls it a temporary failure
ONE_SIGNAL = 0.2  # seconds in which several are one: `timeout` sends to a process and then to its group
ONE_LAUNCH = 2.0  # the same under torchrun, which passes on what its processes have got already


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold the signals that stop a run back, and from the processes that are started inside for good.

    A terminal, or a cluster, sends them to the loader's workers too, whose death would be taken for an accident.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _numbers())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Work:
    """Something that can be stopped and resumed, in words for the person who stops it."""

    def __init__(
        self,
        hear: Callable[[], None] = lambda: None,
        *,
        waits: str = "this step",
        say: Callable[[str], None] | None = None,
        kept: Callable[[], str] = lambda: "",
        resume: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.hear = hear  # called at each signal, in the main thread
        self.waits = waits  # what a stop waits for; it may be changed on the way
        self.say = say  # how to tell of it while it is done; None: on standard error
        self.kept = kept  # what is safe if it ends at once
        self.resume = resume  # the command that resumes it; None: the one that was given
        self.asked = False  # whether a signal has come


@contextmanager
def listening(work: Work) -> Iterator[Work]:
    """Have each signal that stops a run told to `work`, and then to the outer work, such as a comparison.

    Only the main thread may listen; elsewhere this does nothing. Without a program that ends itself (`ending`), a
    second SIGINT raises KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield work
        return
    program = _program

    def tell(number: int, frame: Any) -> None:
        again, work.asked = work.asked, True
        work.hear()
        if again and program is None and number == signal.SIGINT:
            raise KeyboardInterrupt
        outer = before[number]
        if callable(outer) and outer is not signal.default_int_handler:
            outer(number, frame)

    before = {number: signal.signal(number, tell) for number in _numbers()}
    if program is not None:
        program.works.append(work)
    try:
        yield work
    finally:
        if program is not None:
            if work.asked:
                program.acknowledged.wait(ONE_LAUNCH)  # its words come before what the work says in the end
            program.works.remove(work)
        for number, handler in before.items():
            restore(number, handler)


def restore(number: int, handler: Any) -> None:
    """Put a handler back; None, which is what Python says of one that it does not know, is the system's own."""
    signal.signal(number, signal.SIG_DFL if handler is None else handler)


def as_typed(arguments: Sequence[str]) -> str:
    """A command of ours as one types it, also under torchrun."""
    launcher = "torchrun ... -m maskzoo" if _several_processes() else "maskzoo"
    return " ".join([launcher, *map(shlex.quote, arguments)])


# ------------------------------------------------------------------------------------------------------ whole programs
class _Program:
    """This program, as far as a signal ends it."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.works: list[Work] = []  # the innermost last
        self.acknowledged = threading.Event()
        self.first = 0.0  # when the first signal came that somebody listened to
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.outer = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        self.before = {number: signal.signal(number, _heard) for number in _numbers()}
        self.thread = threading.Thread(target=self._read, name="signals", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Leave the signals to whoever had them before."""
        for number, handler in self.before.items():
            restore(number, handler)
        signal.set_wakeup_fd(self.outer)
        os.close(self.writer)
        self.thread.join()
        os.close(self.reader)

    def _read(self) -> None:
        numbers = _numbers()
        while heard := os.read(self.reader, 1):
            if heard[0] in numbers:
                self._hear()

    def _hear(self) -> None:
        now = time.monotonic()
        if not self.acknowledged.is_set() and self.works:
            self.first = now
            work = self.works[-1]
            words = f"Stopping after {work.waits}; once more to abort"
            try:
                (work.say or _write)(words)
            finally:
                self.acknowledged.set()
        elif not self.acknowledged.is_set() or now - self.first > (ONE_LAUNCH if _several_processes() else ONE_SIGNAL):
            self._end()

    def _end(self) -> None:
        """End the program, and all that it has started, without waiting for anything."""
        try:
            for process in multiprocessing.active_children():
                process.kill()
            for leader in (leader for leaders in list(_groups) for leader in leaders()):
                with suppress(ProcessLookupError):
                    os.killpg(leader, signal.SIGKILL)
            for path in [*_unfinished, *_unfinished]:  # twice: the main thread may be writing there
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            kept = resume = None
            if self.works:
                kept, resume = self.works[-1].kept(), self.works[0].resume()
            words = f"Stopped at once{f'; {kept}' if kept else ''}. " if self.acknowledged.is_set() else "Stopped. "
            _write(words + (f"Resume with: {resume}" if resume else f"Start again with: {self.command}"))
        finally:
            os._exit(STOPPED)


_program: _Program | None = None
_groups: list[Callable[[], Iterable[int]]] = []  # process groups that must not outlive this program
_unfinished: set[Path] = set()  # files and folders that nobody wants if it ends now


@contextmanager
def ending(arguments: Sequence[str]) -> Iterator[None]:
    """Let signals end this program, whose arguments these are, with a message and code 75.

    Nested, or outside of the main thread, this does nothing.
    """
    if _program is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _begin(arguments)
    try:
        yield
    finally:
        program = _program
        _forget()
        if program is not None:
            program.close()


def end_by_signals(arguments: Sequence[str]) -> None:
    """The same to the end of the process, whose code is settled when the interpreter begins to take itself down."""
    _begin(arguments)
    atexit.register(_ignore)  # ahead of all others, so that it is called after them


def _begin(arguments: Sequence[str]) -> None:
    global _program
    _program = _Program(as_typed(arguments))


def _ignore() -> None:
    """Heed no more signals: Python puts the system's handlers back, which would end the program with another code."""
    for number in _numbers():
        signal.signal(number, signal.SIG_IGN)


def this_command() -> str | None:
    """What was typed to start this program, as far as signals end it."""
    return None if _program is None else _program.command


@contextmanager
def ended_with_us(leaders: Callable[[], Iterable[int]]) -> Iterator[None]:
    """Kill the process groups of these leaders where the program ends at once inside."""
    _groups.append(leaders)
    try:
        yield
    finally:
        _groups.remove(leaders)


@contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """Remove a file or folder where the program ends at once inside."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _unfinished.discard(path)


def _forget() -> None:
    global _program
    _program = None


def _in_a_child() -> None:
    """A forked process is ended by signals as any other; what it hears is not for the pipe of its parent."""
    if _program is not None:
        signal.set_wakeup_fd(-1)
        for number, handler in _program.before.items():
            restore(number, handler)
    _forget()
    _groups.clear()
    _unfinished.clear()


os.register_at_fork(after_in_child=_in_a_child)


def _heard(number: int, frame: Any) -> None:
    """Do nothing: the thread that reads the pipe does all."""


def _write(words: str) -> None:
    """Say something on standard error, below a moving line that may be there; under torchrun once."""
    if os.environ.get("RANK", "0") != "0":
        return
    clear = "\r\x1b[2K\x1b[?25h" if os.isatty(2) else ""  # a spinner hides the cursor
    with suppress(OSError):
        os.write(2, f"{clear}{printable(words)}\n".encode(errors="replace"))


def _several_processes() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _numbers() -> set[int]:
    return {getattr(signal, name) for name in STOP_SIGNALS}
