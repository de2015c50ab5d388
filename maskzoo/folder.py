"""The folder of a run: what it leaves behind, what it goes on from, and that nobody else writes there meanwhile."""

from __future__ import annotations

import itertools
import os
import platform
import socket
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import torch
from filelock import FileLock, Timeout
from rich.console import Console

from maskzoo import checkpoint, measured, processes
from maskzoo.errors import DataError, MaskZooError, RecipeError
from maskzoo.marks import GENERATOR, is_run, remove_pictures, unused
from maskzoo.measured import Measured
from maskzoo.plain import (
    DATA_PLACES,
    is_number,
    printable,
    read_json,
    read_lines,
    replace,
    same_place,
    shown,
    step_line,
    write_json,
)
from maskzoo.recipe import differing, read, write
from maskzoo.records import Record, gaps, steps_in
from maskzoo.registry import Registry
from maskzoo.sources import changes
from maskzoo.train import Session

CHECKPOINTED = "checkpointed"  # a key of environment.json, once there is a checkpoint
INSTEAD = (
    "; a run cannot change them midway: set them back, or begin another run in another --out, where --weights can take "
    "what this one has learned"
)


@attrs.frozen
class RunFolder:
    """`recipe.toml`, `environment.json`, `metrics.jsonl`, `evaluation.json`, `masks/` and `checkpoints/` of a run.

    Of several processes the first writes; the others only read.
    """

    path: Path
    _told: dict[str, set[str]] = attrs.field(factory=dict, init=False, eq=False, repr=False)  # by kind; see `warn`

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    def refuse_foreign(self, *, resume: bool) -> None:
        """Raise RecipeError if a run must not write here: what is here is somebody else's, or would be lost."""
        if not self.path.exists() or unused(self.path):
            return
        ours = is_run(self.path)
        if not resume:
            how = ", or continue the run that is there with --resume" if ours else ""
            raise RecipeError(f"--out: '{self.path}' holds something already; choose another folder{how}")
        if not ours:
            raise RecipeError(
                f"--resume: '{self.path}' holds something, but no run: neither the environment.json of a run nor a "
                "checkpoint; choose another folder with --out"
            )
        if checkpoint.found(self.checkpoints):
            return
        if self.has_measured("after"):
            raise RecipeError(
                f"--resume: the run in '{self.path}' is finished and its checkpoints are gone, so there is nothing to "
                "resume; its metrics are kept; to train anew, choose another folder with --out"
            )
        if self._had_checkpoint():
            raise RecipeError(
                f"--resume: the run in '{self.path}' had checkpoints, and they are gone, so there is nothing to "
                "resume; put them back, or train anew in another folder with --out; its metrics are kept"
            )
        if not (self.path / "recipe.toml").exists() and (self.path / "metrics.jsonl").exists():
            raise RecipeError(
                f"--resume: the run in '{self.path}' has neither its recipe.toml nor a checkpoint; choose another "
                "folder with --out"
            )

    def refuse_another(self, recipe: Mapping[str, Any], registry: Registry) -> None:
        """Raise RecipeError if what is in this folder was made by another recipe, naming the keys that differ."""
        if (self.path / "recipe.toml").exists():
            known = bool(checkpoint.found(self.checkpoints))  # which will know the images again, wherever they are
            other = differing(read(self.path / "recipe.toml"), recipe, registry, moved=known)
            if other:
                raise RecipeError(
                    f"--resume: the run in '{self.path}' is of another recipe: {'; '.join(other)}{INSTEAD}"
                )

    def look_again(self, recipe: Mapping[str, Any], registry: Registry, *, resume: bool) -> None:
        """Refuse once more, now that nobody else can write here: another run may have been here meanwhile."""
        problem = None
        if processes.first():
            try:
                self.refuse_foreign(resume=resume)
                if resume:
                    self.refuse_another(recipe, registry)
            except MaskZooError as failure:
                problem = str(failure)
        problem = processes.first_heard(problem)
        if problem is not None:
            raise RecipeError(problem)

    @classmethod
    def claim(cls, session: Session) -> RunFolder:
        """A new folder runs/<masker>-<schedule>-<data>-s<seed>, with a number behind it where that is taken."""
        if not processes.first():
            told = processes.told(None)
            if not told:
                raise RecipeError("the first process cannot make a folder for the run; say where with --out")
            return cls(Path(told))
        masking = session.recipe["masking"]
        parts = [masking["strategy"]["use"], masking["curriculum"]["use"], session.recipe["data"]["use"]]
        if session.strategy.default_curriculum is None:
            del parts[1]
        name = "-".join([*parts, f"s{session.seed}"])
        runs = Path("runs")
        try:
            runs.mkdir(exist_ok=True)
            for number in itertools.count(1):
                path = runs / (name if number == 1 else f"{name}-{number}")
                try:
                    path.mkdir()  # two runs that start at once must not get one folder
                except FileExistsError:
                    continue
                break
        except OSError as problem:
            processes.told("")
            raise RecipeError(f"'{runs.absolute()}' cannot be written to: {problem}; say where with --out") from problem
        processes.told(str(path))
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep everybody else from writing here; the lock goes with the process, however it ends.

        Raises RecipeError where the folder cannot be made, or is being written to by another run.
        """
        problem, lock = None, None
        if processes.first():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self.path / "lock", timeout=0)
                lock.acquire()
            except Timeout:
                problem = f"'{self.path}' is being written to by another run{self._writer()}; wait for it, or end it"
            except (OSError, NotImplementedError) as failure:
                problem = f"'{self.path}' cannot be made and locked: {failure}"
        problem = processes.first_heard(problem)
        if problem is not None:
            raise RecipeError(f"--out: {problem}")
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _writer(self) -> str:
        try:
            environment = read_json(self.path / "environment.json")
            return f" (process {environment['process']} on {environment['host']})"
        except (DataError, KeyError):
            return ""

    def open(self, session: Session, console: Console, registry: Registry, *, resume: bool) -> bool:
        """Bring the session and the folder to the newest good checkpoint, if asked to; True if there was one."""
        resumed = resume and self.load_newest(session, console, registry)
        if resume:
            self.forget(session, console)
        if resumed and processes.first():
            checkpoint.tidy(self.checkpoints, session.step)
        return resumed

    def load_newest(self, session: Session, console: Console, registry: Registry | None = None) -> bool:
        """Load the newest checkpoint that can be read; the damaged ones stay where they are.

        Raises RecipeError where none can be read or, with a registry to read recipes by, where it is of another one.
        """
        problems: list[str] = []
        # As the first process sees them: a network's file system may show another an older list.
        names = processes.told("/".join(path.name for path in checkpoint.found(self.checkpoints))) or ""
        for path in [self.checkpoints / name for name in reversed(names.split("/")) if name]:
            state, problem = None, None
            try:
                state = checkpoint.read(path)
            except RecipeError as failure:
                problem = str(failure)
            problem = processes.first_heard(problem)  # what one cannot read, none takes
            if state is None or problem is not None:
                problems.append(problem or "")
                continue
            for known in problems:
                console.print(f"{known}; going back to '{path}'", style="yellow", highlight=False, markup=False)
            then = state.get("recipe")
            if (
                registry is not None
                and isinstance(then, Mapping)
                and (other := differing(then, session.recipe, registry, moved=True))
            ):
                raise RecipeError(f"--resume: '{path}' was made under another recipe: {'; '.join(other)}{INSTEAD}")
            checkpoint.load(session, state, path)
            return True
        if problems:
            raise RecipeError(problems[0])
        return False

    def _cut(self, step: int, console: Console, *, finished: bool) -> None:
        """Forget what came at or after `step`, which is about to be done again."""
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():
            kept = [line for line in read_lines(metrics) if (told := step_line(line)) and told["step"] < step]
            text = "".join(f"{line}\n" for line in kept)
            if text.encode() != metrics.read_bytes():
                replace(metrics, text)
        self.tell_gaps(step, console)
        if step == 0:
            remove_pictures(self.path / "masks")
        held = self.evaluation()
        outdated = [one for one in held[measured.MOMENTS] if one == "after" or step == 0]
        if not finished and outdated:
            for moment in outdated:
                held = measured.without(held, moment)
            if any(held.values()):
                write_json(self.path / "evaluation.json", held)
            else:
                (self.path / "evaluation.json").unlink()

    def tell_gaps(self, wanted: int, console: Console) -> None:
        """Say, once, which of the first `wanted` steps metrics.jsonl lacks or has twice; the run needs none of them."""
        path = self.path / "metrics.jsonl"
        if processes.first() and (wrong := gaps(steps_in(path), wanted)):
            self.warn(f"'{path}' {wrong}; it was changed from outside, and curves will show that", console)

    def plugin_changes(self) -> list[str]:
        """A clause for each plugin whose code is no longer that with which the run was begun, or went on, so far."""
        environment = self._environment()
        before = environment.get("changed")
        held = [str(one) for one in before] if isinstance(before, list) else []
        return list(dict.fromkeys([*held, *changes(environment)]))

    def save(self, session: Session) -> None:
        """Save a checkpoint, and remember that there was one: a run whose checkpoints are gone is not begun anew."""
        checkpoint.save(session, self.checkpoints)
        if processes.first() and not self._had_checkpoint():
            write_json(self.path / "environment.json", {**self._environment(), CHECKPOINTED: True})

    def _had_checkpoint(self) -> bool:
        return self._environment().get(CHECKPOINTED) is True

    def _environment(self) -> dict[str, Any]:
        """What environment.json holds; nothing where it is not there or cannot be read."""
        try:
            return dict(read_json(self.path / "environment.json", missing={}))
        except DataError:
            return {}

    def describe(self, session: Session, registry: Registry, facts: Mapping[str, Any]) -> None:
        """Write the resolved recipe and what the run stands on; a resumed run keeps the recipe it began with.

        `facts` are those of `provenance.facts`.

        A finished run stands on what it stood on.
        """
        if not processes.first():
            return
        if session.step < session.steps or not (self.path / "environment.json").exists():
            self._mark(session, registry, facts)  # first of all
        if not (self.path / "recipe.toml").exists() or self._data_moved(session.recipe):
            replace(self.path / "recipe.toml", write(session.recipe))

    def _data_moved(self, recipe: Mapping[str, Any]) -> bool:
        """Whether the images, which the checkpoint has known again, are elsewhere than recipe.toml says."""
        there, here = shown(read(self.path / "recipe.toml")), shown(recipe)
        return not all(same_place(key, there.get(key), here.get(key)) for key in DATA_PLACES)

    def _mark(self, session: Session, registry: Registry, facts: Mapping[str, Any]) -> None:
        environment = {
            **({CHECKPOINTED: True} if checkpoint.found(self.checkpoints) else {}),
            "generator": GENERATOR,
            "command": sys.argv,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "processes": processes.world(),
            "device": str(session.device),
            "device_name": torch.cuda.get_device_name(session.device) if session.device.type == "cuda" else "",
            "python": platform.python_version(),
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("maskzoo", "torch", "torchvision", "timm")},
            "plugins": sorted({f"{plugin.distribution} {plugin.version}" for plugin in registry.plugins}),
            **facts,
        }
        write_json(self.path / "environment.json", environment)

    @contextmanager
    def metrics(self) -> Iterator[Record]:
        """`metrics.jsonl`, to be appended to; a line a step. Nowhere for all processes but the first."""
        with ExitStack() as stack:
            with self.writing():
                record = stack.enter_context(Record.opened(self.path / "metrics.jsonl" if processes.first() else None))
            yield record

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say in a sentence that something cannot be written to this folder; other errors pass."""
        try:
            yield
        except OSError as problem:
            there = os.path.abspath(self.path)
            if problem.filename is not None and not os.path.abspath(problem.filename).startswith(there):
                raise
            last = checkpoint.found(self.checkpoints)
            whole = f"the last checkpoint, '{last[-1]}', is whole" if last else "there is no checkpoint yet"
            raise MaskZooError(f"'{self.path}' cannot be written to: {problem}; {whole}") from problem

    def warn(self, sentence: str, console: Console, kind: str = "warnings") -> None:
        """Say a sentence and keep it in `warnings.txt`, or another such file, unless it is there already."""
        line = printable(" ".join(sentence.split()))
        record = self.path / f"{kind}.txt"
        if kind not in self._told:
            self._told[kind] = set(read_lines(record))
        if line in self._told[kind]:
            return
        self._told[kind].add(line)
        with self.writing(), record.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        console.print(line, style="yellow", highlight=False, markup=False)

    def forget(self, session: Session, console: Console) -> None:
        """Forget what came at or after the step to which the session has been brought."""
        if processes.first():
            self._cut(session.step, console, finished=session.step == session.steps)
        processes.wait()

    def usual_speeds(self) -> dict[str, float]:
        """The median over the steps of the images a second: of all, of the loader alone, of the step alone."""
        steps = list(filter(None, map(step_line, read_lines(self.path / "metrics.jsonl"))))
        names = ("images_per_second", "loader_images_per_second", "step_images_per_second")
        known = {name: [step[name] for step in steps if is_number(step.get(name))] for name in names}
        return {name: statistics.median(speeds) for name, speeds in known.items() if speeds}

    def evaluation(self) -> dict[str, Any]:
        """What has been measured so far, in the format of `measured`; RecipeError where that cannot be read."""
        try:
            return measured.read(self.path / "evaluation.json", strict=True)
        except DataError as problem:
            raise RecipeError(f"{problem}; rename it, and what was in it can be measured again") from None

    def has_measured(self, moment: str) -> bool:
        """Whether the run has measured itself "before" or "after" training."""
        return moment in self.evaluation()[measured.MOMENTS]

    def add_evaluation(self, new: Sequence[Measured], moment: str = "") -> None:
        """Keep what was measured, in the place of what was measured alike; a `moment` of the run's own is over then."""
        if processes.first():
            write_json(self.path / "evaluation.json", measured.added(self.evaluation(), new, moment))
