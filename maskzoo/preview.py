"""What a masker does to some image files over its curriculum, without training: a PNG, and the same in a terminal.

Shapes: B images, M moments, C channels, H height, W width.
"""

from __future__ import annotations

import os
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from maskzoo.build import check_needs, check_ratio, choose_curriculum, choose_ratio, make_backbone, refuse_meaningless
from maskzoo.cost import Shape
from maskzoo.data.pixels import STATISTICS, Reading, ReadsImages, reading_of
from maskzoo.data.prepare import prepare_sample
from maskzoo.errors import DataError, MaskZooError, RecipeError
from maskzoo.flags import backbone_of
from maskzoo.pictures import coloured, covered, drawn_by, signed
from maskzoo.plain import named
from maskzoo.protocols import CurriculumSchedule, MaskingContext, Sample
from maskzoo.recipe import MaskingRecipe, Use, make, make_dial
from maskzoo.registry import Registry
from maskzoo.schedules import set_up
from maskzoo.sheet import OWNER, Column, draw, half_blocks
from maskzoo.signals import unfinished
from maskzoo.trained import open_run
from maskzoo.views import View, view_of

Statistics = tuple[Sequence[float], Sequence[float]]
STEPS = 1000  # of the run that is imagined
TINY = {  # a model that is never asked, for maskers that look at none: 14 x 14 patches of 16 pixels
    "timm": "vit_tiny_patch16_224",
    "options": {"embed_dim": 8, "depth": 1, "num_heads": 1},
}
MOST_MOMENTS, MOST_FILES = 20, 100  # of a picture that somebody could look at
READ_AS_PICTURES = Reading()
NAMES_HERE = {  # keys of a recipe
    r"recipe\.backbone\.pretrained": "--pretrained",
    r"recipe\.backbone[.\w]*": "--backbone",
    r"recipe\.masking\.strategy": "--masker",
    r"recipe\.masking\.curriculum": "--schedule",
    r"recipe\.masking\.ratio": "--ratio",
}


@attrs.frozen
class Wish:
    """What a preview shall show; what is None is the run's, or the masker's own."""

    masker: Use | None = None
    schedule: Use | None = None
    ratio: Use | None = None
    moments: int = attrs.field(default=5)
    run: Path | None = None
    backbone: str | None = None
    pretrained: bool = False  # whether a `backbone` comes with timm's weights
    seed: int = 0


@attrs.frozen(eq=False)
class Players:
    """Who chooses the masks, on the grid and with the eyes of which model."""

    objective: Any
    strategy: Any
    curriculum: CurriculumSchedule
    ratio: CurriculumSchedule
    mean: Sequence[float]
    std: Sequence[float]
    reading: Reading  # how images are read
    note: str  # whose eyes those are
    step: int | None = None  # at which the run left what it had learnt
    shown: Sequence[int] | None = None  # channels that the run's data set wants to be seen
    view: View | None = None  # how the images are seen; None: as they are

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that the backbone takes."""
        grid, patch = self.objective.backbone.grid, self.objective.backbone.patch_size
        return grid[0] * patch[0], grid[1] * patch[1]


def preview(
    files: Sequence[Path], wish: Wish, out: Path, registry: Registry, console: Console, *, terminal: bool = True
) -> None:
    """Draw what is hidden of the image files at several moments: into the PNG `out`, and on a true-colour terminal.

    Raises RecipeError for what cannot be shown, DataError for an image that cannot be read, and MaskZooError where the
    picture cannot be written. An `out` that is no preview is not overwritten.
    """
    _refuse_too_much(files, wish)
    _refuse_to_overwrite(out)
    named = NamedFiles(files)
    options = ReadsImages()
    players = players_of(wish, registry, options.decide(named, required=False), (options.mean or (), options.std or ()))
    backbone = players.objective.backbone
    named = NamedFiles(files, players.reading)
    whole = [named[number] for number in range(len(files))]
    prepared = [prepare_sample(one, players.size, players.mean, players.std) for one in whole]
    images = torch.stack([image for image, _ in prepared])
    valid = torch.stack([side.get("valid", torch.ones_like(image)).bool() for image, side in prepared])
    players = _viewed(players, images, valid, eight_bits=all(one.image.dtype == torch.uint8 for one in whole))
    title, names = _title(players), _names(files)
    with _beside(out) as part:
        columns = [Column("image", shown(images, players)), *look(images, players, wish)]
        draw(columns, names, part, title=title, note=players.note)
    if terminal and console.is_terminal and console.color_system == "truecolor":
        for line in half_blocks(columns, names, console.width, backbone.grid):
            console.print(line, no_wrap=True, overflow="crop")
    console.print(
        f"{title}: {out}" + (f" ({players.note})" if players.note else ""),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if wish.run is None:
        for remark in options.remarks:
            console.print(remark, highlight=False, markup=False, soft_wrap=True)


def _refuse_too_much(files: Sequence[Path], wish: Wish) -> None:
    if not 1 <= wish.moments <= MOST_MOMENTS:
        raise RecipeError(f"--moments: must be between 1 and {MOST_MOMENTS}, got {wish.moments}")
    if len(files) > MOST_FILES:
        raise RecipeError(f"IMAGE: {len(files)} files are too many for one picture; name at most {MOST_FILES}")


# --------------------------------------------------------------------------------------------------------------- files
@attrs.frozen(eq=False)
class NamedFiles:
    """The image files that somebody named, as a split."""

    files: Sequence[Path]
    reading: Reading = attrs.field(factory=Reading)

    def __len__(self) -> int:
        return len(self.files)

    def stored(self, index: int) -> tuple[str, str]:
        """The file of an image; it has a name of its own."""
        return str(self.files[index]), ""

    def __getitem__(self, index: int) -> Sample:
        return read(self.files[index], self.reading)


def read(file: Path, reading: Reading) -> Sample:
    """The image in a file; DataError where it cannot be had."""
    try:
        return reading.read(str(file)).sample(None)
    except DataError as problem:
        cause = problem.__cause__
        if isinstance(cause, FileNotFoundError | NotADirectoryError):
            raise DataError(f"IMAGE: there is no '{file}'") from problem
        if os.path.isdir(file):
            raise DataError(f"IMAGE: '{file}' is a folder; name image files") from problem
        if isinstance(cause, Image.DecompressionBombError):
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise DataError(f"IMAGE: '{file}' is larger than {most:,} pixels; shrink it") from problem
        if isinstance(cause, OSError) and cause.strerror:
            raise DataError(f"IMAGE: '{file}' cannot be opened ({cause.strerror})") from problem
        raise


def _names(files: Sequence[Path]) -> list[str]:
    """What to call the files: by their names, with their folders where several have one name."""
    count = Counter(file.name for file in files)
    return [file.name if count[file.name] == 1 else str(file) for file in files]


def _refuse_to_overwrite(out: Path) -> None:
    try:
        there = out.exists()
    except OSError as problem:  # such as a name that is too long
        raise _unwritable(out, problem) from problem
    if there and not drawn_by(out, OWNER):
        raise RecipeError(f"--out: '{out}' exists, and is no preview; choose another name")


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A new file beside `out`, which takes its place in the end; MaskZooError where it cannot be written."""
    part = out.parent / f".preview-{uuid.uuid4().hex}.part"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(part):
            part.touch(exist_ok=False)  # what cannot be written is said before hours of looking
            yield part
            part.replace(out)
    except OSError as problem:
        raise _unwritable(out, problem) from problem
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _unwritable(out: Path, problem: OSError) -> MaskZooError:
    return MaskZooError(f"--out: '{out}' cannot be written: {problem.strerror or problem}")


# ------------------------------------------------------------------------------------------------------------- players
def players_of(
    wish: Wish, registry: Registry, reading: Reading = READ_AS_PICTURES, usual: Statistics = STATISTICS[3]
) -> Players:
    """The masker that was asked for, and a model for it to look through. RecipeError where it needs a run.

    Unless a run has its own, images are read by the `reading` and normalised by the `usual` mean and deviation.
    """
    if wish.pretrained and wish.backbone is None:
        raise RecipeError("--pretrained: say with --backbone NAME which model's weights; a run has its own")
    if wish.run is not None:
        return _of_run(wish, wish.run, registry)
    strategy: Any = make(registry, "strategy", "random" if wish.masker is None else wish.masker, "--masker")
    looks = strategy.needs - {"teacher"}
    blind = not strategy.needs and not strategy.learners()
    if strategy.learners() or looks - {"attention", "features"}:
        why = "learns" if strategy.learners() else f"needs {', '.join(sorted(looks))}"
        raise RecipeError(f"--masker: '{strategy.name}' {why}, so there is nothing to show without --run RUN")
    if wish.backbone is None and not blind:
        raise RecipeError(
            f"--masker: '{strategy.name}' looks through a model's eyes; say which with --run RUN, or with "
            "--backbone NAME, a timm model or a registered backbone"
        )
    with torch.random.fork_rng(devices=[]), _named_as_here():
        torch.default_generator.manual_seed(wish.seed)
        sizes: Any = Shape(channels=reading.channels)  # of a data set
        backbone: Any = make_backbone(_backbone_of(wish, registry), sizes, registry)
        objective: Any = make(registry, "objective", {"use": "reconstruct", "decoder_dim": 32, "decoder_depth": 1}, "")
        objective.setup(backbone)
        strategy.setup(objective)
        check_needs(strategy, objective, sizes)
    if wish.backbone is None:
        note = ""
    else:
        note = f"as seen by {'timm' if wish.pretrained else 'an untrained'} {wish.backbone}" + (
            ", pretrained" if wish.pretrained else ": its weights are random"
        )
    masking = MaskingRecipe(ratio=0.75 if wish.ratio is None else wish.ratio, curriculum=wish.schedule)
    statistics = _statistics(backbone, usual, pretrained=wish.pretrained)
    return _with_dials(objective, strategy, masking, registry, statistics, reading, "" if blind else note, wish)


def _backbone_of(wish: Wish, registry: Registry) -> Use:
    """The backbone that was asked for, by its name here or in timm."""
    if wish.backbone is None:
        return TINY
    return {**backbone_of(wish.backbone, registry), **({"pretrained": True} if wish.pretrained else {})}


def _statistics(backbone: Any, usual: Statistics, *, pretrained: bool) -> Statistics:
    """Mean and deviation by which a model's images are normalised: the usual, or what timm's weights are used to."""
    config = backbone.model.pretrained_cfg if pretrained and hasattr(backbone, "model") else {}
    found = tuple(config.get("mean", usual[0])), tuple(config.get("std", usual[1]))
    return found if len(found[0]) == len(usual[0]) else usual


@contextmanager
def _named_as_here() -> Iterator[None]:
    """Name what is wrong as this command names it, and not as a recipe does."""
    try:
        yield
    except MaskZooError as problem:
        words = str(problem)
        for key, option in NAMES_HERE.items():
            words = re.sub(key, option, words)
        raise RecipeError(words) from problem


def _of_run(wish: Wish, run: Path, registry: Registry) -> Players:
    if wish.backbone is not None:
        raise RecipeError("--backbone: the run has one; give --run or --backbone, not both")
    trained = open_run(run, registry)
    masking = trained.recipe.masking
    note, own = f"as seen by the model of '{run}' at step {trained.step}", named(masking.strategy)
    strategy: Any = None
    if wish.masker is not None:
        asked: Any = make(registry, "strategy", wish.masker, "--masker")
        if asked.name != own:
            masking = MaskingRecipe(ratio=masking.ratio)
            strategy = asked
            if strategy.learners():
                raise RecipeError(
                    f"--masker: '{strategy.name}' learns, and the run '{run}' taught '{own}'; give a run of it"
                )
            with torch.random.fork_rng(devices=[]):
                strategy.setup(trained.objective)
    if strategy is None:
        strategy = trained.strategy
    note += "".join(f"; {remark}" for remark in trained.remarks)
    if strategy.learners():
        note += "; what it has learnt is as the run left it, at every moment"
    if wish.ratio is not None:
        masking = attrs.evolve(masking, ratio=wish.ratio)
    if wish.schedule is not None:
        masking = attrs.evolve(masking, curriculum=wish.schedule)
    channels = trained.backbone.channels
    statistics = STATISTICS.get(channels, ((0.5,) * channels, (0.25,) * channels))
    try:
        dataset: Any = trained.dataset()
        statistics = tuple(dataset.mean), tuple(dataset.std)
        reading = getattr(dataset, "reading", Reading(channels))
    except MaskZooError:
        dataset, reading = Shape(trained.image_size, channels), reading_of(trained.recipe.data, channels)
        note += "; its data are gone, so images are normalised by what is usual"
    with _named_as_here():
        check_needs(strategy, trained.objective, dataset)
    players = _with_dials(trained.objective, strategy, masking, registry, statistics, reading, note, wish)
    return attrs.evolve(players, step=trained.step, shown=getattr(dataset, "shown", None))


def _with_dials(
    objective: Any,
    strategy: Any,
    masking: MaskingRecipe,
    registry: Registry,
    statistics: Statistics,
    reading: Reading,
    note: str,
    wish: Wish,
) -> Players:
    curriculum: Any = make(registry, "schedule", choose_curriculum(masking, strategy), "--schedule")
    ratio: Any = make_dial(registry, choose_ratio(masking, objective), "--ratio")
    for schedule in (curriculum, ratio):
        set_up(schedule, 1, STEPS)
    moments = moments_of(wish)
    with _named_as_here():
        refuse_meaningless(curriculum, strategy, moments)
        check_ratio(ratio, strategy, objective, moments)
    return Players(objective.eval(), strategy.eval(), curriculum, ratio, *statistics, reading, note=note)


def moments_of(wish: Wish) -> list[float]:
    """The progress of each moment, from the first step to the last; of a single one the last."""
    if wish.moments == 1:
        return [1.0]
    return [number / (wish.moments - 1) for number in range(wish.moments)]


# ------------------------------------------------------------------------------------------------------------- looking
@torch.no_grad()
def look(images: Tensor, players: Players, wish: Wish) -> list[Column]:
    """What is seen of the images [B, C, H, W] at each moment; each draws anew, as each step of a run does.

    Where no moment differs from another there is one column: of a learner, say, whose weights are the run's all along.
    """
    backbone, whole = players.objective.backbone, shown(images, players)
    obeys = _obeys_factor(images, players, wish)
    moments = []
    for number, progress in enumerate(moments_of(wish)):
        context = _context(images, players, wish, number, progress)
        dials = f"ratio {context.count / context.patches:.2f}"
        if obeys:
            dials = f"factor {signed(context.factor)}\n{dials}"
        moments.append((f"{progress:.0%} of training", dials, players.strategy.mask(context)))
        context.guard.refuse_bad_scores()
        context.guard.refuse_changed("strategy", players.strategy)
    _, dials, first = moments[0]
    still = all(other == dials and torch.equal(mask.hidden, first.hidden) for _, other, mask in moments)
    if still and players.strategy.learners():
        moments = [(f"as learnt\nstep {players.step}", dials, first)]
    elif still and len(moments) > 1:
        moments = [("at every moment", dials, first)]
    return [
        Column(f"{when}\n{dials}", covered(whole, mask, backbone.grid, backbone.patch_size))
        for when, dials, mask in moments
    ]


def _context(images: Tensor, players: Players, wish: Wish, number: int, progress: float) -> MaskingContext:
    """What the masker may see at that moment."""
    context = MaskingContext.of(
        players.objective,
        images,
        players.ratio(progress),
        step=number,
        factor=players.curriculum(progress),
        progress=progress,
        seed=wish.seed,
    )
    return attrs.evolve(context, least_hidden=1, least_shown=1).counted_by(players.strategy)


def _obeys_factor(images: Tensor, players: Players, wish: Wish) -> bool:
    """Whether a masker hides otherwise at another factor; that of many a learner is a sign of its loss alone."""
    strategy = players.strategy
    if strategy.default_curriculum is None or not strategy.learners():
        return strategy.default_curriculum is not None
    context = _context(images, players, wish, 0, moments_of(wish)[-1])
    partner, adversary = (strategy.mask(attrs.evolve(context, factor=factor)).hidden for factor in (1.0, -1.0))
    return not torch.equal(partner, adversary)


def _viewed(players: Players, images: Tensor, valid: Tensor, *, eight_bits: bool) -> Players:
    """The same players, who know how the images [B, C, H, W] are seen, and say so in their note."""
    view = view_of(_levels(images, players), eight_bits=eight_bits, valid=valid, shown=players.shown)
    caption = "" if view is None else view.caption
    return attrs.evolve(players, view=view, note="; ".join(one for one in (players.note, caption) if one))


def shown(images: Tensor, players: Players) -> Tensor:
    """Normalised images [B, C, H, W] as colour [B, 3, H, W] in [0, 1]."""
    levels = _levels(images, players)
    return (coloured(levels) if players.view is None else players.view(levels)).clamp(0, 1)


def _levels(images: Tensor, players: Players) -> Tensor:
    """The levels [B, C, H, W] of normalised images."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (players.mean, players.std))
    return images * std + mean


def _title(players: Players) -> str:
    """Who hides, and by which curriculum."""
    if players.strategy.default_curriculum is None:
        return str(players.strategy.name)
    return f"{players.strategy.name}, {getattr(players.curriculum, 'name', type(players.curriculum).__name__)}"
