"""What a stopped run needs to go on: a file, or for a sharded model a folder, that is either whole or not there."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from maskzoo import processes
from maskzoo.data.labels import difference, listed
from maskzoo.errors import MaskZooError, RecipeError
from maskzoo.marks import CHECKPOINT
from maskzoo.train import ModelStep, Session

KEPT = 2  # checkpoints of a run, the newest ones
FORMAT = 1  # of what `state_of` gives; a change that an older MaskZoo could not read raises it
REST = "rest.pt"  # of a sharded checkpoint: all that is not sharded
# What its table of contents may name. No bytes: torch would unpickle them, without such care, when it reads them.
NAMED = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "ChunkStorageMetadata"),
        *("TensorProperties", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "pathlib": ("PosixPath", "WindowsPath"),
}


def save(session: Session, folder: Path) -> Path:
    """Write the session beside, then rename it into place, and forget all but the newest checkpoints.

    All processes call this. Raises MaskZooError where it cannot be written, e.g. on a full disk; the checkpoints that
    are there stay whole.
    """
    kind = "" if session.engine.sharded else ".pt"
    path = folder / f"step-{session.step:08d}{kind}"
    beside = path.with_name(path.name + ".part")
    state = state_of(session)
    problem: str | None = None
    if processes.first():
        problem = _tried(lambda: _begin(beside, state, session.engine.sharded), beside)
    problem = processes.first_heard(problem)
    if problem is None and session.engine.sharded:
        problem = processes.first_heard(_tried(lambda: _save_shards(session, beside), beside))
    if problem is None and processes.first():
        problem = _tried(lambda: _finish(beside, path), beside)
    problem = processes.first_heard(problem)
    if problem is not None:
        last = found(folder)
        kept = f"the last one, '{last[-1]}', is whole" if last else "there was none before"
        raise MaskZooError(f"the checkpoint of step {session.step} cannot be written: {problem}; {kept}")
    return path


def _begin(beside: Path, state: dict[str, Any], in_folder: bool) -> None:
    beside.parent.mkdir(parents=True, exist_ok=True)
    for half in beside.parent.iterdir():  # of a run that was killed while it wrote
        if re.fullmatch(rf"{CHECKPOINT.pattern}\.part", half.name):
            _remove(half)
    if in_folder:
        beside.mkdir()
    with (beside / REST if in_folder else beside).open("xb") as file:  # no link that somebody has put there
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _finish(beside: Path, path: Path) -> None:
    if path.is_dir():  # of a step that was done before the run went back; a file is replaced in one go
        _remove(path)
    os.replace(beside, path)
    _sync(path.parent)  # or a power cut could leave neither the new one nor those that are now forgotten
    tidy(path.parent, step_of(path))


def tidy(folder: Path, step: int) -> None:
    """Remove all but the newest checkpoints up to `step`, whose own is known to be good.

    What is of a later step stays: it is damaged, or of a run that went back. What is plainly damaged counts for none.
    """
    past = [path for path in found(folder) if step_of(path) <= step]
    whole = [path for path in past if step_of(path) == step or _looks_whole(path)]
    for old in past:
        if old not in whole[-KEPT:]:
            _remove(old)


def step_of(path: Path) -> int:
    """The step of the checkpoint at a path."""
    return int(path.stem.removeprefix("step-"))


def _looks_whole(path: Path) -> bool:
    return zipfile.is_zipfile(path / REST if path.is_dir() else path)


def _sync(folder: Path) -> None:
    """Let the names in a folder outlive a power cut, where the system knows how."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _tried(action: Callable[[], None], beside: Path) -> str | None:
    """Do it, or say why it failed, and leave nothing half written."""
    try:
        action()
    except (OSError, RuntimeError, CheckpointException) as problem:  # torch's writer has errors of its own
        full = shutil.disk_usage(beside.parent).free < 2**20 if beside.parent.exists() else False
        _remove(beside)
        if "DataLoader worker" in str(problem):  # torch raises it wherever we happen to be; it is not about the disk
            raise
        if isinstance(problem.__context__, OSError):  # of which torch's writer only says that something was amiss
            problem = problem.__context__
        return "the disk is full" if full else (str(problem).splitlines() or [type(problem).__name__])[0]
    return None


def _remove(path: Path) -> None:
    """Remove a checkpoint; of a folder, what we have written there, and the folder where nothing else is in it."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    with suppress(OSError):
        for file in (path / REST, path / "shards" / ".metadata", *(path / "shards").glob("*.distcp")):
            file.unlink(missing_ok=True)
        for left in (path / "shards").glob(".metadata*.tmp"):
            left.unlink(missing_ok=True)
        if (path / "shards").is_dir():
            (path / "shards").rmdir()
        path.rmdir()


def found(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    named = (path for path in folder.glob("step-*") if CHECKPOINT.fullmatch(path.name))
    return sorted(named, key=lambda path: (step_of(path), path.name))


def load(session: Session, state: dict[str, Any], path: Path) -> None:
    """Bring a session to where the checkpoint at `path`, read as `state`, left it.

    Raises RecipeError where it is not of the same recipe or data.
    """
    if state.get("format", 1) > FORMAT:
        raise RecipeError(f"the checkpoint '{path}' is of a newer MaskZoo; this one cannot read it")
    learned = classes_of(state)  # before the fingerprint, which cannot name them
    if learned is not None and session.classes is not None and (other := difference(learned, session.classes)):
        raise RecipeError(
            f"the classes of the data have changed since the checkpoint '{path}' was made: {other}; a class keeps its "
            "name and number as long as a run lasts"
        )
    if "classes" not in state and session.renumbered:
        raise RecipeError(
            f"the checkpoint '{path}' is of an older MaskZoo, which numbered the classes of these data in another "
            f"order than now ({listed(session.classes or ())}); it can be evaluated and exported, but not resumed"
        )
    for name in ("steps", "steps_in_epoch", "fingerprint"):
        if state.get(name) != getattr(session, name):
            raise RecipeError(
                f"the data have changed since the checkpoint '{path}' was made: {name.replace('_', ' ')} "
                f"{state.get(name)} then, {getattr(session, name)} now"
            )
    if session.engine.sharded and not path.is_dir():
        raise RecipeError(f"the checkpoint '{path}' is not of a sharded model; go on with recipe.train.parallel ddp")
    try:
        live = _live(session, whole=not path.is_dir())
        if set(state["state"]) != set(live):
            raise ValueError(f"it holds {sorted(state['state'])}, the recipe makes {sorted(live)}")
        for name, part in live.items():
            part.load_state_dict(state["state"][name])
        if path.is_dir():
            _load_shards(session, state, path)
    except (RuntimeError, ValueError, KeyError, CheckpointException) as problem:
        raise RecipeError(f"the checkpoint '{path}' is not of this recipe: {problem}") from problem
    session.step = state["step"]
    session.lr_factor = state.get("lr_factor", 1.0)


def classes_of(state: Mapping[str, Any]) -> list[str] | None:
    """The classes of the data that a checkpoint, read as `state`, has learned from, by number.

    None where the data had no labels, and where the checkpoint is older than the names in it.
    """
    held = state.get("classes")
    if not isinstance(held, list) or not all(isinstance(name, str) for name in held):
        return None
    return list(held)


def read(path: Path) -> dict[str, Any]:
    """The plain content of a checkpoint: tensors, numbers and texts only, nothing that could run."""
    try:
        if path.is_dir():
            _check_shards(path / "shards")
        file = path / REST if path.is_dir() else path
        with zipfile.ZipFile(file) as archive:
            check_sums(archive)
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not {"step", "state"} <= state.keys():
            raise ValueError("it is something else")
    except Exception as problem:  # a truncated file fails in as many ways as there are bytes
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise RecipeError(f"the checkpoint '{path}' cannot be read: {reason}") from problem
    return state


def check_sums(archive: zipfile.ZipFile) -> None:
    """Raise ValueError where a byte is not what was written; torch, though it writes checksums, never looks at them."""
    damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of '{damaged}' is wrong, so the file is damaged")


def _check_shards(folder: Path) -> None:
    """Check the table of contents, and this process's share of the tensors."""
    contents = _Reader(folder).read_metadata()
    places = list(contents.storage_data.values())
    for place in places[processes.rank() :: processes.world()]:
        with (folder / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            with zipfile.ZipFile(io.BytesIO(file.read(place.length))) as archive:
                check_sums(archive)


def state_of(session: Session) -> dict[str, Any]:
    """Everything that a session's future depends on; random draws depend on seed and step alone.

    Of a sharded model only what is not sharded, and the settings of its optimizer.
    """
    state = {
        "format": FORMAT,
        "step": session.step,
        "steps": session.steps,
        "steps_in_epoch": session.steps_in_epoch,
        "fingerprint": session.fingerprint,
        "classes": None if session.classes is None else list(session.classes),
        "lr_factor": session.lr_factor,
        "recipe": dict(session.recipe),
        "state": {name: part.state_dict() for name, part in _live(session, whole=not session.engine.sharded).items()},
    }
    if session.engine.sharded:
        state["optimizer"] = {"param_groups": _optimizer_state(session)["param_groups"]}
    return state


def _live(session: Session, *, whole: bool) -> dict[str, Any]:
    """What has a state, by name; of a session whose model is not `whole` in one process, all but that."""
    parts: dict[str, Any] = {"strategy": session.strategy, "strategy_optimizer": session.strategy_mover}
    if whole:
        parts |= {"objective": session.objective, "teacher": session.teacher, "optimizer": session.mover}
    return {name: part for name, part in parts.items() if part is not None}


def newest_good(paths: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """The newest of some checkpoints that can be read, its objective's state, and what is wrong with newer ones.

    Raises RecipeError where none can be read.
    """
    problems: list[str] = []
    for path in reversed(paths):
        try:
            state = read(path)
            return state, objective_of(path, state), problems
        except RecipeError as found:
            problems.append(str(found))
    raise RecipeError(problems[0])


def objective_of(path: Path, state: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """The parameters and buffers of the objective in a checkpoint, by name; RecipeError where it cannot be read.

    `state` is what `read` has made of it, if somebody has read it already.
    """
    state = read(path) if state is None else state
    if not path.is_dir():
        return dict(state["state"]["objective"])
    contents = _Reader(path / "shards").read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in contents.items()
        if name.startswith("objective.") and isinstance(about, TensorStorageMetadata)
    }
    _read_shards(tensors, path)
    return {name.removeprefix("objective."): value for name, value in tensors.items()}


# ------------------------------------------------------------------------------------------------- sharded checkpoints
def _optimizer_state(session: Session) -> dict[str, Any]:
    step = ModelStep(session.objective, session.strategy)  # the module whose parameters the optimizer moves
    return get_optimizer_state_dict(step, session.mover.optimizer)


def _shards(session: Session) -> dict[str, Any]:
    """The tensors that are spread over the processes; tensors only, since torch would pickle anything else."""
    parts = {
        "objective": get_model_state_dict(session.objective),  # type: ignore[arg-type]
        "optimizer": _optimizer_state(session)["state"],
    }
    if session.teacher is not None:
        parts["teacher"] = get_model_state_dict(session.teacher.module)
    return parts


def _save_shards(session: Session, folder: Path) -> None:
    state_dict_saver.save(_shards(session), checkpoint_id=folder / "shards", no_dist=processes.world() == 1)


def _load_shards(session: Session, state: dict[str, Any], folder: Path) -> None:
    """Load a sharded checkpoint, into any number of processes, the model sharded or whole."""
    shards = _shards(session)
    _read_shards(shards, folder)
    set_model_state_dict(session.objective, shards["objective"])  # type: ignore[arg-type]
    step = ModelStep(session.objective, session.strategy)
    optimizer = {"state": shards["optimizer"], **state["optimizer"]}
    set_optimizer_state_dict(step, session.mover.optimizer, optim_state_dict=optimizer)
    if session.teacher is not None:
        set_model_state_dict(session.teacher.module, shards["teacher"])


def _read_shards(wanted: dict[str, Any], folder: Path) -> None:
    """Read these tensors of a sharded checkpoint, in place."""
    with warnings.catch_warnings():  # torch warns that a single process is one
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        state_dict_loader.load(wanted, storage_reader=_Reader(folder / "shards"), no_dist=processes.world() == 1)


class _Reader(FileSystemReader):
    """Torch's reader, which unpickles a table of contents; here that may name only what it is made of."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The table of contents."""
        with self.fs.create_stream(self.fs.concat_path(self.path, ".metadata"), "rb") as file:
            contents: Metadata = _Plain(file).load()
        if getattr(contents, "storage_meta", None) is None:
            contents.storage_meta = StorageMeta()
        contents.storage_meta.load_id = self.load_id  # type: ignore[union-attr]
        return contents


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What a table of contents is made of, a path or a number format; raises UnpicklingError for anything else."""
        if name in NAMED.get(module, ()) or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place in a checkpoint")
