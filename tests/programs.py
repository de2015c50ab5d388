"""Whole programs under test: real processes that start at once, since one that has imported everything forks them.

Run as a program it is that one: a line of JSON on its standard input starts a run, and it answers how things stand.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import attrs
import tomli_w

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def small_recipe(strategy: Any = "random", **train: Any) -> dict[str, Any]:
    """The smallest run there is, as plain values; keyword arguments go into its section train."""
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    return {
        "data": "digits",
        "backbone": {"timm": "vit_tiny_patch16_224", "patch_size": 8, "position": "sin-cos", "options": options},
        "objective": {"use": "reconstruct", "decoder_dim": 16, "decoder_depth": 1},
        "masking": {"strategy": strategy},
        "optimizer": {"lr": {"use": "cosine", "start": 1.5e-3, "end": 5e-4, "warmup": 0.05}},
        "evaluation": [],
        "train": {"batch_size": 8, "device": "cpu", "precision": "fp32", "workers": 0, "pictures": 0, **train},
    }


@attrs.define(eq=False)
class Program:
    """One run of `maskzoo`: a process of its own, in a process group of its own."""

    starter: Starter
    process: int
    said: Path
    code: int | None = None  # as a shell would know it, or minus the signal that ended it

    def ended(self) -> bool:
        """Whether it has ended by now."""
        if self.code is None:
            self.code = self.starter.ask({"poll": self.process})
        return self.code is not None

    def wait(self, seconds: float = 120.0) -> Program:
        """Wait for its end."""
        self.until(lambda: False, seconds)
        return self

    def until(self, condition: Any, seconds: float = 120.0) -> bool:
        """Wait until something holds; False if the program ended before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.ended():
                return bool(condition())
            assert time.monotonic() < deadline, f"nothing happened:\n{self.words}"
            time.sleep(0.002)
        return True

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to its whole group as a terminal does."""
        if not self.ended():
            (os.killpg if group else os.kill)(self.process, number)

    @property
    def words(self) -> str:
        """What it has printed, warnings and errors too."""
        return self.said.read_text()


class Starter:
    """The process that has imported everything, and forks a program whenever it is asked to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        assert self.ask({}) == "ready"

    def ask(self, question: dict[str, Any]) -> Any:
        """Send a question and wait for the answer."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(question) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, *arguments: str | Path, before: str = "", folder: Path | None = None) -> Program:
        """Start `maskzoo` with these arguments; `before` is code that is run first."""
        self.count += 1
        said = self.folder / f"said-{self.count}.txt"
        said.touch()
        question = {"arguments": [str(argument) for argument in arguments], "before": before, "said": str(said)}
        return Program(self, self.ask({**question, "folder": str(folder or self.folder)}), said)

    def run(self, *arguments: str | Path, **options: Any) -> Program:
        """Start `maskzoo` and wait for its end."""
        return self.start(*arguments, **options).wait()

    def train(self, *arguments: str | Path, **options: Any) -> Program:
        """A training run that ends as it should."""
        done = self.run("train", *arguments, **options)
        assert done.code == 0, done.words
        return done

    def close(self) -> None:
        """End it, and whatever it has started and is still there."""
        self.server.communicate()


@contextmanager
def starter(folder: Path) -> Iterator[Starter]:
    """A starter for as long as it is needed."""
    made = Starter(folder)
    try:
        yield made
    finally:
        made.close()


def _serve() -> None:
    from maskzoo.cli import main

    with tempfile.TemporaryDirectory() as folder:  # a run as short as can be imports everything
        recipe = Path(folder) / "recipe.toml"
        recipe.write_text(tomli_w.dumps(small_recipe({"use": "clmae", "depth": 1}, steps=1)))
        with redirect_stdout(io.StringIO()):
            main(["train", str(recipe), "--out", f"{folder}/out"], standalone_mode=False)
    running: set[int] = set()
    for line in sys.stdin:
        question = json.loads(line)
        answer: Any = "ready"
        if "poll" in question:
            process, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if process else None
            running -= {process}
        elif "arguments" in question:
            answer = os.fork()
            if answer == 0:
                _become(main, **question)
            running.add(answer)
        print(json.dumps(answer), flush=True)
    for process in running:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _become(main: Any, arguments: list[str], before: str, said: str, folder: str) -> None:
    """In the forked process: be the program."""
    os.setpgid(0, 0)
    with open(said, "w") as file, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from maskzoo.signals import end_by_signals

    os.chdir(folder)
    sys.argv = ["maskzoo", *arguments]
    code = 1
    try:
        end_by_signals(arguments)
        exec(before, {})
        main(arguments)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)  # taking the interpreter down takes longer than a small run


if __name__ == "__main__":
    _serve()
