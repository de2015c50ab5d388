"""What a stopped run needs to go on, in one file that is either whole or not there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from maskzoo.errors import RecipeError
from maskzoo.train import Session

KEPT = 2  # checkpoints of a run, the newest ones


def save(session: Session, folder: Path) -> Path:
    """Write the session beside, then rename it into place, and forget all but the newest checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{session.step:08d}.pt"
    beside = path.with_suffix(".part")
    with beside.open("wb") as file:
        torch.save(state_of(session), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    for old in found(folder)[:-KEPT]:
        old.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{8,}\.pt", path.name))


def load(session: Session, state: dict[str, Any], path: Path) -> None:
    """Bring a session to where the checkpoint at `path`, read as `state`, left it.

    Raises RecipeError where it is not of the same recipe or data.
    """
    for name in ("steps", "steps_in_epoch", "fingerprint"):
        if state.get(name) != getattr(session, name):
            raise RecipeError(
                f"the data have changed since the checkpoint '{path}' was made: {name.replace('_', ' ')} "
                f"{state.get(name)} then, {getattr(session, name)} now"
            )
    try:
        live = _live(session)
        if set(state["state"]) != set(live):
            raise ValueError(f"it holds {sorted(state['state'])}, the recipe makes {sorted(live)}")
        for name, part in live.items():
            part.load_state_dict(state["state"][name])
    except (RuntimeError, ValueError, KeyError) as problem:
        raise RecipeError(f"the checkpoint '{path}' is not of this recipe: {problem}") from problem
    session.step = state["step"]


def read(path: Path) -> dict[str, Any]:
    """The plain content of a checkpoint: tensors, numbers and texts only, nothing that could run."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # a truncated file fails in as many ways as there are bytes
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise RecipeError(f"the checkpoint '{path}' cannot be read: {reason}") from problem
    return state


def state_of(session: Session) -> dict[str, Any]:
    """Everything that a session's future depends on; random draws depend on seed and step alone."""
    return {
        "step": session.step,
        "steps": session.steps,
        "steps_in_epoch": session.steps_in_epoch,
        "fingerprint": session.fingerprint,
        "recipe": dict(session.recipe),
        "state": {name: part.state_dict() for name, part in _live(session).items()},
    }


def _live(session: Session) -> dict[str, Any]:
    parts = {
        "objective": session.objective,
        "strategy": session.strategy,
        "teacher": session.teacher,
        "optimizer": session.optimizer,
        "strategy_optimizer": session.strategy_optimizer,
    }
    return {name: part for name, part in parts.items() if part is not None}
