"""What a masker does to some image files over its curriculum, without training: a PNG, and the same in a terminal.

Shapes: B images, M moments, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import matplotlib
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.text import Text
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from maskzoo.build import check_needs, check_ratio, choose_curriculum, choose_ratio, make_backbone, refuse_meaningless
from maskzoo.cost import Shape
from maskzoo.data.batches import prepare
from maskzoo.data.folder import MODES, STATISTICS, read_image
from maskzoo.errors import MaskZooError, RecipeError
from maskzoo.pictures import INK, coloured, covered, signed
from maskzoo.protocols import CurriculumSchedule, MaskingContext
from maskzoo.recipe import MaskingRecipe, Use, make
from maskzoo.registry import Registry
from maskzoo.trained import open_run

STEPS = 1000  # of the run that is imagined
OWNER = "MaskZoo preview"  # what a picture says of itself, so that it may be drawn anew in its place
TINY = {  # a model that is never asked, for maskers that look at none: 14 x 14 patches of 16 pixels
    "timm": "vit_tiny_patch16_224",
    "options": {"embed_dim": 8, "depth": 1, "num_heads": 1},
}
LEAST_CELLS, MOST_CELLS = 8, 32  # characters across an image in a terminal


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
    note: str  # whose eyes those are

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that the backbone takes."""
        grid, patch = self.objective.backbone.grid, self.objective.backbone.patch_size
        return grid[0] * patch[0], grid[1] * patch[1]


@attrs.frozen(eq=False)
class Column:
    """What is seen of the images at one moment of the curriculum."""

    caption: str
    seen: Tensor  # [B, 3, H, W] in [0, 1]


def preview(
    files: Sequence[Path], wish: Wish, out: Path, registry: Registry, console: Console, *, terminal: bool = True
) -> None:
    """Draw what is hidden of the image files at several moments: into the PNG `out`, and on a true-colour terminal.

    Raises RecipeError for what cannot be shown, DataError for an image that cannot be read. An `out` that is no
    preview is not overwritten.
    """
    if wish.moments < 1:
        raise RecipeError(f"--moments: must be at least 1, got {wish.moments}")
    if out.exists() and not _is_ours(out):
        raise RecipeError(f"--out: '{out}' exists, and is no preview; choose another name")
    players = players_of(wish, registry)
    channels = players.objective.backbone.channels
    if channels not in MODES:
        raise RecipeError(f"--run: its images have {channels} channels, and files are read with {list(MODES)}")
    whole = [read_image(str(file), channels) for file in files]
    images = torch.stack([prepare(image, players.size, players.mean, players.std) for image in whole])
    columns = [Column("image", shown(images, players)), *look(images, players, wish)]
    title = _title(players)
    names = [file.name for file in files]
    draw(columns, names, out, title=title, note=players.note)
    if terminal and console.is_terminal and console.color_system == "truecolor":
        for line in half_blocks(columns, names, console.width):
            console.print(line, no_wrap=True, overflow="crop")
    console.print(
        f"{title}: {out}" + (f" ({players.note})" if players.note else ""),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def players_of(wish: Wish, registry: Registry) -> Players:
    """The masker that was asked for, and a model for it to look through. RecipeError where it needs a run."""
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
            "--backbone NAME, a timm model"
        )
    table = TINY if wish.backbone is None else {"timm": wish.backbone, "pretrained": wish.pretrained}
    mean, std = STATISTICS[3]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(wish.seed)
        backbone: Any = make_backbone(table, Shape(), registry)  # type: ignore[arg-type]  # a data set's sizes
        objective: Any = make(registry, "objective", {"use": "reconstruct", "decoder_dim": 32, "decoder_depth": 1}, "")
        objective.setup(backbone)
        strategy.setup(objective)
    check_needs(strategy, objective, Shape())  # type: ignore[arg-type]
    if wish.backbone is None:
        note = ""
    else:
        note = f"as seen by {'timm' if wish.pretrained else 'an untrained'} {wish.backbone}" + (
            ", pretrained" if wish.pretrained else ": its weights are random"
        )
    masking = MaskingRecipe(ratio=0.75 if wish.ratio is None else wish.ratio, curriculum=wish.schedule)
    return _with_dials(objective, strategy, masking, registry, (mean, std), "" if blind else note, wish)


def _of_run(wish: Wish, run: Path, registry: Registry) -> Players:
    if wish.backbone is not None:
        raise RecipeError("--backbone: the run has one; give --run or --backbone, not both")
    trained = open_run(run, registry)
    masking = trained.recipe.masking
    strategy, note = trained.strategy, f"as seen by the model of '{run}' at step {trained.step}"
    own: Any = trained.strategy
    if wish.masker is not None:
        asked: Any = make(registry, "strategy", wish.masker, "--masker")
        if asked.name != own.name:
            masking = MaskingRecipe(ratio=masking.ratio)
            strategy = asked
            if strategy.learners():
                raise RecipeError(
                    f"--masker: '{strategy.name}' learns, and the run '{run}' taught '{own.name}'; give a run of it"
                )
            with torch.random.fork_rng(devices=[]):
                strategy.setup(trained.objective)
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
    except MaskZooError:
        dataset = Shape(trained.image_size, channels)
        note += "; its data are gone, so images are normalised by what is usual"
    check_needs(strategy, trained.objective, dataset)
    return _with_dials(trained.objective, strategy, masking, registry, statistics, note, wish)


def _with_dials(
    objective: Any,
    strategy: Any,
    masking: MaskingRecipe,
    registry: Registry,
    statistics: tuple[Sequence[float], Sequence[float]],
    note: str,
    wish: Wish,
) -> Players:
    curriculum: Any = make(registry, "schedule", choose_curriculum(masking, strategy), "--schedule")
    ratio: Any = make(registry, "schedule", choose_ratio(masking, objective), "--ratio")
    for schedule in (curriculum, ratio):
        schedule.setup(1, STEPS)
    moments = moments_of(wish)
    try:
        refuse_meaningless(curriculum, strategy, moments)
        check_ratio(ratio, strategy, objective, moments)
    except MaskZooError as problem:  # named as this command names it
        words = (
            str(problem).replace("recipe.masking.curriculum", "--schedule").replace("recipe.masking.ratio", "--ratio")
        )
        raise RecipeError(words) from problem
    return Players(objective.eval(), strategy.eval(), curriculum, ratio, *statistics, note=note)


def moments_of(wish: Wish) -> list[float]:
    """The progress of each moment, from the first step to the last; of a single one the last."""
    if wish.moments == 1:
        return [1.0]
    return [number / (wish.moments - 1) for number in range(wish.moments)]


@torch.no_grad()
def look(images: Tensor, players: Players, wish: Wish) -> list[Column]:
    """What is seen of the images [B, C, H, W] at each moment; each draws anew, as each step of a run does."""
    backbone, whole = players.objective.backbone, shown(images, players)
    columns = []
    for number, progress in enumerate(moments_of(wish)):
        context = MaskingContext.of(
            players.objective,
            images,
            players.ratio(progress),
            factor=players.curriculum(progress),
            progress=progress,
            seed=wish.seed,
        )
        context = attrs.evolve(context, step=number, least_hidden=1, least_shown=1).counted_by(players.strategy)
        mask = players.strategy.mask(context)
        dials = f"ratio {context.count / context.patches:.2f}"
        if players.strategy.default_curriculum is not None:
            dials = f"factor {signed(context.factor)}\n{dials}"
        seen = covered(whole, mask, backbone.grid, backbone.patch_size)
        columns.append(Column(f"{progress:.0%} of training\n{dials}", seen))
    return columns


def shown(images: Tensor, players: Players) -> Tensor:
    """Normalised images [B, C, H, W] as colour [B, 3, H, W] in [0, 1]."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (players.mean, players.std))
    return coloured((images * std + mean).clamp(0, 1))


# ------------------------------------------------------------------------------------------------------------- drawing
def draw(columns: Sequence[Column], names: Sequence[str], path: Path, *, title: str, note: str = "") -> None:
    """One PNG: a row for each image, a column for each moment, with captions above."""
    lines = max(column.caption.count("\n") + 1 for column in columns)
    side, head, foot = 1.6, 0.42 + 0.16 * lines, 0.3 if note else 0.08  # inches
    height, width = columns[0].seen.shape[2:]
    tall = side * height / width
    with matplotlib.rc_context({"font.size": 9, "font.family": "DejaVu Sans", "text.color": INK}):
        figure = Figure(figsize=(0.1 + side * len(columns), head + tall * len(names) + foot), dpi=130)
        figure.patch.set_facecolor("white")
        across, down = figure.get_size_inches()
        grid = figure.add_gridspec(
            len(names),
            len(columns),
            left=0.05 / across,
            right=1 - 0.05 / across,
            top=1 - head / down,
            bottom=foot / down,
            wspace=0.05,
            hspace=0.05,
        )
        for number, column in enumerate(columns):
            for row, image in enumerate(column.seen):
                axes = figure.add_subplot(grid[row, number])
                axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
                axes.set_axis_off()
                if row == 0:
                    axes.set_title(column.caption, fontsize=9, color=INK, pad=4)
        figure.text(0.08 / across, 1 - 0.1 / down, title, ha="left", va="top", fontweight="bold")
        if note:
            figure.text(0.08 / across, 0.08 / down, note, ha="left", va="bottom", fontsize=7.5)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".part")
        figure.savefig(beside, format="png", metadata={"Software": OWNER})
        beside.replace(path)


def half_blocks(columns: Sequence[Column], names: Sequence[str], width: int) -> list[Text]:
    """The same as lines of coloured half blocks, for a terminal `width` characters wide; as many columns as fit."""
    cells = min(MOST_CELLS, max(LEAST_CELLS, (width + 1) // len(columns) - 1))
    fitting = columns[: max(1, (width + 1) // (cells + 1))]
    height, across = columns[0].seen.shape[2:]
    rows = max(1, round(cells * height / across / 2))
    small = [(adaptive_avg_pool2d(column.seen, (2 * rows, cells)) * 255).round().int().tolist() for column in fitting]
    captions = [column.caption.split("\n") for column in fitting]
    lines = []
    for number in range(max(len(caption) for caption in captions)):
        words = (caption[number] if number < len(caption) else "" for caption in captions)
        lines.append(Text(" ".join(f"{word[:cells]:<{cells}}" for word in words)))
    for image in range(len(names)):
        for row in range(rows):
            line = Text()
            for number, column in enumerate(small):
                line.append(" " if number else "")
                red, green, blue = column[image]
                for cell in range(cells):
                    upper, lower = (
                        f"rgb({red[place][cell]},{green[place][cell]},{blue[place][cell]})"
                        for place in (2 * row, 2 * row + 1)
                    )
                    line.append("▀", style=f"{upper} on {lower}")
            lines.append(line)
        lines.append(Text(names[image]))
    return lines


def _title(players: Players) -> str:
    """Who hides, and by which curriculum."""
    if players.strategy.default_curriculum is None:
        return str(players.strategy.name)
    return f"{players.strategy.name}, {getattr(players.curriculum, 'name', type(players.curriculum).__name__)}"


def _is_ours(path: Path) -> bool:
    """Whether a file is a picture that this command drew."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == OWNER
    except (OSError, SyntaxError):
        return False
