"""Where figures go besides the run's folder, and that nothing which goes wrong there can hurt the run."""

from __future__ import annotations

import json
import math
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import attrs
import pytest
from PIL import Image

from maskzoo import DataError, Logger, RecipeError, Registry, hookimpl
from maskzoo.loggers import maskzoo_loggers
from maskzoo.loggers.several import Loggers
from maskzoo.recipe import describe, make

RECIPE = {"masking": {"strategy": {"use": "random"}}, "train": {"seed": 0, "loggers": []}}
PATH = "recipe.train.loggers[0]"


@attrs.define
class Notebook:
    """A logger that keeps what it is told, and fails when asked to."""

    name = "notebook"

    fails_at: str = ""
    problem: BaseException = attrs.field(factory=lambda: OSError("no space left\non device"))
    told: list[tuple[Any, ...]] = attrs.field(factory=list, init=False)

    def _note(self, what: str, *words: Any) -> None:
        self.told.append((what, *words))
        if what == self.fails_at:
            raise self.problem

    def start(self, folder: Path, recipe: Any, step: int) -> None:
        self._note("start", folder, recipe, step)

    def log(self, figures: Any, step: int) -> None:
        self._note("log", dict(figures), step)

    def image(self, name: str, path: Path, step: int) -> None:
        self._note("image", name, path, step)

    def close(self, failed: bool = False) -> None:
        self._note("close", failed)


def follow(loggers: list[Logger], folder: Path, steps: int = 3, first: int = 0) -> list[str]:
    """A run of some steps; what is said meanwhile."""
    said: list[str] = []
    with Loggers(loggers, said.append).following(folder, RECIPE, first) as following:
        for step in range(first, first + steps):
            following.log({"step": step, "loss": 1.0 / (step + 1)}, step)
        following.image("masks", picture(folder), step)
    return said


def picture(folder: Path) -> Path:
    path = folder / "masks.png"
    Image.new("RGB", (6, 4)).save(path)
    return path


def words(logger: Notebook) -> list[str]:
    return [what for what, *_ in logger.told]


# ---------------------------------------------------------------------------------------------------- several, guarded
def test_each_logger_is_told_of_everything_in_order(tmp_path: Path):
    loggers = [Notebook(), Notebook()]
    assert follow(loggers, tmp_path, steps=2, first=5) == []
    for logger in loggers:
        assert logger.told == [
            ("start", tmp_path, RECIPE, 5),
            ("log", {"loss": 1 / 6}, 5),
            ("log", {"loss": 1 / 7}, 6),
            ("image", "masks", tmp_path / "masks.png", 6),
            ("close", False),
        ]


@pytest.mark.parametrize("moment", ["start", "log", "image", "close"])
def test_a_logger_that_fails_is_left_out_with_one_sentence_and_the_run_goes_on(tmp_path: Path, moment: str):
    bad, good = Notebook(moment), Notebook()
    (sentence,) = follow([bad, good], tmp_path)
    assert sentence == (
        f"logger 'notebook' failed at step {0 if moment in ('start', 'log') else 2} and is left out from here on: "
        "OSError: no space left on device"
    )
    assert words(good) == ["start", "log", "log", "log", "image", "close"]
    assert words(bad) == words(good)[: words(good).index(moment) + 1]


def test_figures_that_are_not_finite_or_none_are_left_out():
    logger = Notebook()
    figures = {"loss": 1, "step": 7, "nan": math.nan, "inf": -math.inf, "none": None}
    with Loggers([logger], pytest.fail).following(Path(), RECIPE, 0) as following:
        following.log(figures, 7)
    assert logger.told[1] == ("log", {"loss": 1.0}, 7)


def test_what_a_logger_does_to_its_figures_is_hidden_from_the_others():
    class Thief(Notebook):
        def log(self, figures: Any, step: int) -> None:
            figures.clear()

    logger = Notebook()
    follow_two = Loggers([Thief(), logger], pytest.fail)
    with follow_two.following(Path(), RECIPE, 0) as following:
        following.log({"loss": 1.0}, 0)
    assert logger.told[1] == ("log", {"loss": 1.0}, 0)


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), ValueError("the run's own")], ids=repr)
def test_a_run_that_is_broken_off_is_closed_as_failed(problem: BaseException):
    logger = Notebook()
    loggers = Loggers([logger], pytest.fail)
    with pytest.raises(type(problem)), loggers.following(Path(), RECIPE, 0):
        raise problem
    assert logger.told[-1] == ("close", True)


def test_an_interruption_inside_a_logger_ends_the_run_as_anywhere():
    logger = Notebook("log", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt), Loggers([logger], pytest.fail).following(Path(), RECIPE, 0) as following:
        following.log({"loss": 1.0}, 0)
    assert words(logger) == ["start", "log", "close"]


def test_a_recipe_that_a_logger_refuses_is_refused_and_those_before_it_are_closed():
    first, second, third = Notebook(), Notebook("start", RecipeError("no such project")), Notebook()
    loggers = Loggers([first, second, third], pytest.fail)
    with pytest.raises(RecipeError, match=r"^recipe.train.loggers\[1\]: no such project$"):
        loggers.following(Path(), RECIPE, 0).__enter__()
    assert words(first) == ["start", "close"]
    assert words(second) == ["start"]
    assert words(third) == []


def test_a_run_that_goes_back_starts_its_loggers_again_but_those_left_out(tmp_path: Path):
    good, bad, said = Notebook(), Notebook("image"), []
    with Loggers([good, bad], said.append).following(tmp_path, RECIPE, 5) as following:
        following.log({"loss": 1.0}, 5)
        following.image("masks", tmp_path, 6)
        following.log({"loss": 2.0}, 6)
        following.log({"loss": 3.0}, 4)
    assert good.told[3:] == [
        ("log", {"loss": 2.0}, 6),
        ("close", False),
        ("start", tmp_path, RECIPE, 4),
        ("log", {"loss": 3.0}, 4),
        ("close", False),
    ]
    assert words(bad) == ["start", "log", "image"]
    assert len(said) == 1


def test_a_logger_that_refuses_the_recipe_only_later_cannot_stop_the_run():
    logger, said = Notebook(), []
    with Loggers([logger], said.append).following(Path(), RECIPE, 5) as following:
        logger.fails_at, logger.problem = "start", RecipeError("no such project")
        following.log({"loss": 1.0}, 4)
    assert said == ["logger 'notebook' failed at step 4 and is left out from here on: RecipeError: no such project"]


def test_without_loggers_nothing_happens(tmp_path: Path):
    assert follow([], tmp_path) == []


# ------------------------------------------------------------------------------------------------------------- plugins
def test_a_third_party_offers_a_logger_as_it_would_a_masker():
    @attrs.define
    class Diary:
        """A logger of somebody else's."""

        name = "diary"
        color: str = "blue"

    module = types.ModuleType("somebodys_diary")
    module.maskzoo_loggers = hookimpl(lambda: [Diary])
    point = types.SimpleNamespace(
        name="diary", dist=types.SimpleNamespace(name="diary", version="1.0"), load=lambda: module
    )
    registry = Registry([point])
    assert make(registry, "logger", "diary:red", PATH) == Diary("red")
    with pytest.raises(RecipeError, match=r"recipe.train.loggers\[0\].use: no logger named 'dairy'; did you mean"):
        make(registry, "logger", "dairy", PATH)


def test_each_logger_has_an_extra_that_brings_its_library():
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for cls in maskzoo_loggers():
        assert any(requirement.startswith(cls.name) for requirement in extras[cls.name])


@pytest.mark.parametrize("name", [cls.name for cls in maskzoo_loggers()])
def test_a_library_that_is_missing_refuses_the_recipe_with_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecipeError) as caught:
        make(Registry(), "logger", name, PATH)
    assert str(caught.value) == f"{PATH}: the library '{name}' is not installed; pip install 'maskzoo[{name}]'"


def test_a_library_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    (tmp_path / "wandb.py").write_text("import a_library_of_wandb")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match=r"'wandb' cannot be imported.*a_library_of_wandb.*pip install"):
        make(Registry(), "logger", "wandb", PATH)


# --------------------------------------------------------------------------------------------------------- TensorBoard
def tensorboard() -> Any:
    pytest.importorskip("tensorboard")
    return make(Registry(), "logger", "tensorboard", PATH)


def events_of(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_tensorboard_reads_back_figures_pictures_and_recipe(tmp_path: Path):
    assert follow([tensorboard()], tmp_path) == []
    events = events_of(tmp_path)
    assert events.Tags()["scalars"] == ["loss"]
    points = [(event.step, event.value) for event in events.Scalars("loss")]
    assert points == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    (drawn,) = events.Images("masks")
    assert (drawn.step, drawn.width, drawn.height) == (2, 6, 4)
    (text,) = events.Tensors("recipe/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert all(line.startswith("    ") for line in shown.splitlines())
    assert json.loads(shown) == RECIPE


def test_tensorboard_shows_steps_that_were_done_again_once(tmp_path: Path):
    follow([tensorboard()], tmp_path, steps=6)
    with Loggers([tensorboard()], pytest.fail).following(tmp_path, RECIPE, 4) as following:
        for step in (4, 5, 6, 5, 6, 7):
            following.log({"loss": 100.0 + step}, step)
    points = [(event.step, event.value) for event in events_of(tmp_path).Scalars("loss")]
    assert [step for step, _ in points] == list(range(8))
    assert [value for _, value in points[4:]] == [104.0, 105.0, 106.0, 107.0]


# -------------------------------------------------------------------------------------------------- wandb and trackio
@attrs.define
class Tracked:
    """A run as both libraries give it."""

    library: Library
    step: int

    def log(self, figures: dict[str, Any], step: int) -> None:
        self.library.calls.append(("log", figures, step))

    def finish(self, exit_code: int | None = None) -> None:
        self.library.calls.append(("finish", exit_code))


class Library(types.ModuleType):
    """What wandb and trackio share, with a note of each call."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[Any, ...]] = []
        self.next_step = 0

    def init(self, **arguments: Any) -> Tracked:
        self.calls.append(("init", arguments))
        return Tracked(self, self.next_step)

    def finish(self) -> None:
        self.calls.append(("finish",))

    def Image(self, path: str) -> tuple[str, str]:  # noqa: N802
        return "an image", path

    @property
    def begun(self) -> list[dict[str, Any]]:
        return [call[1] for call in self.calls if call[0] == "init"]


@pytest.fixture(params=["wandb", "trackio"])
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library(request.param)
    monkeypatch.setitem(sys.modules, request.param, library)
    return library


def tracking(library: Library, **options: Any) -> Any:
    return make(Registry(), "logger", {"use": library.__name__, **options}, PATH)


def test_a_tracker_gets_recipe_figures_and_pictures(tracker: Library, tmp_path: Path):
    assert follow([tracking(tracker, project="digits")], tmp_path, steps=2) == []
    (begun,) = tracker.begun
    assert (begun["project"], begun["config"], begun["resume"]) == ("digits", RECIPE, "allow")
    assert begun["name"].startswith(tmp_path.name)
    assert tracker.calls[1:-1] == [
        ("log", {"loss": 1.0}, 0),
        ("log", {"loss": 0.5}, 1),
        ("log", {"masks": ("an image", str(tmp_path / "masks.png"))}, 1),
    ]
    assert tracker.calls[-1][0] == "finish"


def test_a_resumed_run_goes_on_with_the_same_run_in_the_tracker(tracker: Library, tmp_path: Path):
    follow([tracking(tracker)], tmp_path)
    follow([tracking(tracker)], tmp_path, first=2)
    (tmp_path / "other").mkdir()
    follow([tracking(tracker)], tmp_path / "other")
    first, again, other = tracker.begun
    key = {"wandb": "id", "trackio": "name"}[tracker.__name__]
    assert first[key] == again[key] == json.loads((tmp_path / f"{tracker.__name__}.json").read_text())[key]
    assert first["name"] == again["name"]
    assert first[key] != other[key]


@pytest.mark.parametrize("record", ["[]", "{}", '{"id": "x"}', "{"])
def test_a_damaged_record_of_a_tracker_is_said(record: str, tracker: Library, tmp_path: Path):
    logger = tracking(tracker)
    (tmp_path / f"{tracker.__name__}.json").write_text(record)
    with pytest.raises(DataError, match=rf"{tracker.__name__}\.json' cannot be read"):
        logger.start(tmp_path, {}, 0)


def test_runs_in_folders_of_the_same_name_are_different_runs_in_the_tracker(tracker: Library, tmp_path: Path):
    for parent in ("here", "there"):
        (tmp_path / parent / "run").mkdir(parents=True)
        follow([tracking(tracker)], tmp_path / parent / "run")
    here, there = tracker.begun
    assert (here.get("id"), here["name"]) != (there.get("id"), there["name"])


def test_the_name_of_a_run_and_the_librarys_own_options_can_be_given(tracker: Library, tmp_path: Path):
    logger = tracking(tracker, run="mine", options={"group": "all", "resume": "must"})
    assert describe(logger) == {
        "use": tracker.__name__,
        "project": "maskzoo",
        "run": "mine",
        "options": {"group": "all", "resume": "must"},
    }
    follow([logger], tmp_path)
    (begun,) = tracker.begun
    assert (begun["name"], begun["group"], begun["resume"]) == ("mine", "all", "must")


def test_a_tracker_that_cannot_begin_is_left_out(tracker: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def init(**arguments: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(tracker, "init", init)
    (sentence,) = follow([tracking(tracker)], tmp_path)
    assert sentence.startswith(f"logger '{tracker.__name__}' failed at step 0 ")
    assert sentence.endswith("ConnectionError: no network")


@pytest.mark.parametrize("tracker", ["wandb"], indirect=True)
def test_wandb_is_not_sent_steps_that_it_has(tracker: Library, tmp_path: Path):
    tracker.next_step = 3
    follow([tracking(tracker)], tmp_path, first=1, steps=4)
    assert [call[2] for call in tracker.calls if call[0] == "log"] == [3, 4, 4]


@pytest.mark.parametrize("tracker", ["wandb"], indirect=True)
def test_wandb_writes_into_the_runs_folder_and_hears_of_a_failure(tracker: Library, tmp_path: Path):
    follow([tracking(tracker)], tmp_path)
    with (
        pytest.raises(KeyboardInterrupt),
        Loggers([tracking(tracker)], pytest.fail).following(tmp_path, RECIPE, 0),
    ):
        raise KeyboardInterrupt
    assert tracker.begun[0]["dir"] == str(tmp_path)
    assert [call for call in tracker.calls if call[0] == "finish"] == [("finish", 0), ("finish", 1)]
