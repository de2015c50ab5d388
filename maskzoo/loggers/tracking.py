"""Trackers of experiments that share `init`, `log` and `finish`: Weights & Biases and Trackio."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs

from maskzoo.errors import DataError
from maskzoo.loggers.library import library
from maskzoo.plain import read_json, write_json
from maskzoo.protocols import define


@define
class Tracker(ABC):
    """A run in somebody's tracker; a resumed run goes on with the one whose id is kept in its folder."""

    name: ClassVar[str]

    project: str = "maskzoo"  # name of the project in the tracker
    run: str | None = None  # None: the name of the run's folder
    options: Mapping[str, Any] = attrs.field(factory=dict)  # anything else for the library's init
    _live: Any = attrs.field(init=False, default=None)  # what the library's init gave
    _known: int = attrs.field(init=False, default=0)  # the steps below are in the tracker already

    def __attrs_post_init__(self) -> None:
        self._library()

    def start(self, folder: Path, recipe: Mapping[str, Any], step: int) -> None:
        """Begin a run in the tracker, or go on with the one that the folder remembers."""
        record = folder / f"{self.name}.json"
        if not record.exists():
            identity = uuid.uuid4().hex[:8]
            chosen = self.chosen_name(folder.resolve().name, identity) if self.run is None else self.run
            write_json(record, {"id": identity, "name": chosen})
        kept = read_json(record)
        if not {"id", "name"} <= kept.keys():
            raise DataError(f"'{record}' cannot be read: expected the id and the name of a run; remove it")
        given = {"project": self.project, "config": dict(recipe), "resume": "allow"}
        given |= self.identified(folder, kept["id"], kept["name"])
        self._live = self._library().init(**{**given, **self.options})
        self._known = self.known()

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Add the figures of a step, unless the tracker has those of that step already."""
        if step >= self._known:
            self._live.log(dict(figures), step=step)

    def image(self, name: str, path: Path, step: int) -> None:
        """Add a picture under its name."""
        if step >= self._known:
            self._live.log({name: self._library().Image(str(path))}, step=step)

    @abstractmethod
    def close(self, failed: bool = False) -> None:
        """Send what is left, and finish."""

    @abstractmethod
    def chosen_name(self, folder: str, identity: str) -> str:
        """What a run in this folder is called where the recipe does not say."""

    @abstractmethod
    def identified(self, folder: Path, identity: str, name: str) -> dict[str, Any]:
        """The arguments by which the library knows a run again."""

    @abstractmethod
    def known(self) -> int:
        """The first step that the run in the tracker does not have yet."""

    def _library(self) -> Any:
        return library(self.name, self.name)


@define
class WandB(Tracker):
    """Figures and pictures to Weights & Biases; `options = { mode = "offline" }` keeps them in the run's folder."""

    name: ClassVar[str] = "wandb"

    def close(self, failed: bool = False) -> None:
        """Finish, as failed or as done."""
        self._live.finish(exit_code=int(failed))

    def chosen_name(self, folder: str, identity: str) -> str:
        """The folder's name: wandb knows runs by their id, so names need not differ."""
        return folder

    def identified(self, folder: Path, identity: str, name: str) -> dict[str, Any]:
        """Its id; what wandb itself writes goes into the run's folder, and no other run of the process is touched."""
        return {"id": identity, "name": name, "dir": str(folder), "reinit": "create_new"}

    def known(self) -> int:
        """The run's next step: wandb refuses those before, with a warning for each."""
        return int(self._live.step)


@define
class Trackio(Tracker):
    """Figures and pictures to Trackio, on this machine, or in a Space: `options = { space_id = "me/space" }`."""

    name: ClassVar[str] = "trackio"

    def close(self, failed: bool = False) -> None:
        """Finish; Trackio does not tell runs that failed from others."""
        self._library().finish()

    def chosen_name(self, folder: str, identity: str) -> str:
        """The folder's name and an id: Trackio knows runs by their name, and another folder may be called the same."""
        return f"{folder}-{identity}"

    def identified(self, folder: Path, identity: str, name: str) -> dict[str, Any]:
        """Its name."""
        return {"name": name}

    def known(self) -> int:
        """None: Trackio does not say, so steps that are done again are there twice."""
        return 0
