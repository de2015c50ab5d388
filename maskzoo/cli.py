"""The command line: parse, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from maskzoo.blame import message_of, plugin_error
from maskzoo.bounds import MOST_WORKERS
from maskzoo.errors import MaskZooError, RecipeError, StoppedError
from maskzoo.plain import printable, shortened
from maskzoo.signals import STOPPED, ending, this_command


class Refusal(click.ClickException):
    """A message about what the user can mend."""

    exit_code = 2

    def format_message(self) -> str:
        """The message, with nothing in it that a terminal would obey."""
        return printable(shortened(self.message))


class Interruption(click.ClickException):
    """A run that a signal stopped, and that can be resumed."""

    exit_code = STOPPED

    def __init__(self, problem: StoppedError) -> None:
        known = problem.resume is not None or this_command() is None
        super().__init__(str(problem) if known else f"{problem} Start again with: {this_command()}")

    def show(self, file: Any = None) -> None:
        """Say it without the word error, and once."""
        if os.environ.get("RANK", "0") == "0":
            click.echo(printable(self.format_message()), file=file, err=True)


class Command(click.Command):
    """A command that takes no empty text: what comes of an unset variable of a shell would mean something else."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Read the arguments. Raises RecipeError for an empty one."""
        given, _, _ = self.make_parser(context).parse_args(args=list(args))
        for parameter in self.params:
            value = given.get(str(parameter.name))
            for text in value if isinstance(value, list | tuple) else [value]:
                if isinstance(text, str) and not text.strip():
                    name = parameter.opts[0] if isinstance(parameter, click.Option) else str(parameter.name).upper()
                    raise RecipeError(f"{name}: is empty; give a value, or leave it out")
        return super().parse_args(context, args)


class OfSeveralSeeds(Command):
    """A command that hides the options which a comparison has in another form, and refuses with where to find them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for parameter in self.params:
            if isinstance(parameter, click.Option) and parameter.name in ("masker", "schedule", "seed"):
                parameter.hidden = True


ORDER = ("data", "train", "evaluate", "compare", "cost", "preview", "export", "list", "show", "plugins")


class Commands(click.Group):
    """A group whose commands answer a MaskZooError with one sentence and exit code 2, or 75 for a stopped run."""

    command_class = Command

    def list_commands(self, context: click.Context) -> list[str]:
        """The commands in the order in which one needs them."""
        known = super().list_commands(context)
        return [*(name for name in ORDER if name in known), *(name for name in known if name not in ORDER)]

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the options that come before a command."""
        try:
            return super().make_context(*args, **options)
        except click.ClickException as problem:
            problem.message = printable(shortened(problem.message))  # type: ignore[misc]  # click calls it final
            raise

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Parse the arguments and run the command, which signals may end."""
        with ending(sys.argv[1:] if args is None else args):
            return super().main(args, *rest, **options)

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        _forgive_encodings()
        told: click.ClickException
        try:
            return super().invoke(context)
        except click.ClickException as problem:  # what click finds wrong quotes what was typed
            problem.message = printable(shortened(problem.message))  # type: ignore[misc]  # click calls it final
            raise
        except StoppedError as problem:
            told = Interruption(problem)
        except MaskZooError as problem:
            told = Refusal(message_of(problem))
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click knows what to do
        except Exception as problem:
            refusal = _refusal(problem)
            if refusal is None:
                problem.add_note("This is a bug of MaskZoo: please report it, with the lines above.")
                raise
            told = refusal
        raise told  # without the error, whose frames hold models, and would hold them to the interpreter's end


def _refusal(problem: Exception) -> Refusal | None:
    """The refusal of what has no message yet: a plugin's bug, or a limit of the machine; None where it is our bug."""
    bug = plugin_error(problem)
    if bug is not None and not isinstance(problem, MemoryError):
        bug.__cause__ = problem
        return Refusal(message_of(bug))
    if isinstance(problem, OSError | EOFError | MemoryError):  # of files and machines, which the user can mend
        return Refusal(message_of(problem, _machine_words(problem)))
    return None


def _forgive_encodings() -> None:
    """Let what the terminal's encoding lacks be printed as an escape instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):  # replaced by something simpler, or closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _machine_words(problem: OSError | EOFError | MemoryError) -> str:
    """What the system refused, in words."""
    if isinstance(problem, MemoryError):
        return f"the memory does not suffice ({problem}); make the model, the images or the batch smaller"
    if isinstance(problem, EOFError):
        return f"a file ended before it was read ({problem}); fetch or make it anew"
    place = f"'{problem.filename}': " if problem.filename else ""
    return f"{place}{problem.strerror or problem}"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="maskzoo")
def main() -> None:
    """Composable masking strategies and curricula for masked image modelling.

    Start with `maskzoo train --masker clmae --schedule partner-neutral-adversary`.
    """


SCHEDULE = click.option(
    "--schedule",
    "--curriculum",
    "schedule",
    metavar="NAME",
    help="Curriculum of the masker, e.g. adversary or linear:0:-0.5 [default: the masker's own].",
)
RATIO = click.option(
    "--ratio",
    metavar="FRACTION",
    help="Fraction of patches to hide, a number or e.g. linear:0.5:0.75 [default: the objective's own].",
)


def overrides(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that change single keys of a recipe."""
    options = [
        click.option(
            "--masker", metavar="NAME", help="Masking strategy; see `maskzoo list strategies` [default: random]."
        ),
        SCHEDULE,
        RATIO,
        click.option(
            "--backbone",
            metavar="NAME",
            help="Any timm model with a grid of features, or a registered backbone [default: a ViT-S].",
        ),
        click.option("--objective", metavar="NAME", help="What the model learns by [default: reconstruct]."),
        click.option("--weights", metavar="PATH", help="Initialise the backbone from a run or a weights file."),
        click.option(
            "--data",
            metavar="NAME|FOLDER",
            help="A folder of images, a data set, hf:NAME or shards:URL [default: digits].",
        ),
        click.option("--epochs", type=int, metavar="N", help="Number of training epochs [default: 100; digits: 8]."),
        click.option(
            "--batch-size",
            type=int,
            metavar="N",
            help="Global batch size [default: a quarter of the images, at most 256; digits: 16].",
        ),
        click.option(
            "--seed", type=int, metavar="N", help="Random seed for weights, data order, crops and masks [default: 0]."
        ),
        click.option("--device", metavar="NAME", help="auto, cuda, mps or cpu [default: auto]."),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Override any recipe key, e.g. --set train.workers=4 (repeatable); `maskzoo show recipe` lists all.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@overrides
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Output folder [default: runs/MASKER-CURRICULUM-DATA-sSEED].",
)
@click.option("--resume", is_flag=True, help="Resume the run in --out, or begin it if there is none.")
def train(recipe: Path | None, out: Path | None, resume: bool, **changes: Any) -> None:
    """Train a backbone by hiding parts of images.

    RECIPE is a TOML file, and options come on top of it. Without one, a small ViT learns from the embedded digits
    (recipes/digits.toml); with another --data, --backbone or --objective, the classes' own defaults are used.

    SIGTERM, SIGINT or SIGUSR1 ends the run after the step in hand with a checkpoint and exit code 75; --resume then
    resumes where it was. Exit code 2: something that you can fix, in one message.

    \b
    maskzoo train --masker clmae --schedule partner-neutral-adversary
    maskzoo train --data photos/ --backbone vit_small_patch16_224 --epochs 200
    maskzoo train recipes/mae-cifar10.toml --masker attmask --set train.workers=4
    maskzoo train --out runs/mine --resume
    """
    from maskzoo.flags import changed, refuse_unknown
    from maskzoo.recipe import Recipe
    from maskzoo.registry import Registry
    from maskzoo.run import run
    from maskzoo.terminal import Console

    registry = Registry()
    if recipe is None and resume and out is not None and (out / "recipe.toml").exists():
        recipe = out / "recipe.toml"  # what the run began with
    if recipe is None and resume and out is not None:
        refuse_unknown(out, changes)
    plain = changed(recipe, registry, note=_note, **changes)
    run(Recipe.from_plain(plain), registry, Console(), out, resume=resume)


def _note(sentence: str) -> None:
    """Say what a command line has left out, once where there are several processes."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(sentence, err=True)


@main.command(name="data", short_help="Look at images as a run would see them.")
@click.argument("source", required=False, metavar="[FOLDER|NAME|RECIPE]")
@click.option("--backbone", metavar="NAME", help="Whose size and patches are told [default: a ViT-S, or the recipe's].")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A key of the recipe, e.g. data.size=96 (repeatable)."
)
@click.option(
    "--look",
    type=click.IntRange(1, 10**9),
    default=256,
    show_default=True,
    metavar="N",
    help="How many images are looked at.",
)
@click.option("--all", "every", is_flag=True, help="Look at all images.")
@click.option("--png", type=click.Path(path_type=Path), metavar="FILE", help="Draw one page, too.")
@click.option("--json", type=click.Path(path_type=Path), metavar="FILE", help="Write everything for programs, too.")
def data_(
    source: str | None,
    backbone: str | None,
    settings: tuple[str, ...],
    look: int,
    every: bool,
    png: Path | None,
    json: Path | None,
) -> None:
    """Look once at images as a run would see them, before it begins, and change nothing.

    Told are: how a folder is read and what is left out, classes and their balance, formats, bits, ranges and missing
    pixels, sizes, broken files, images that are there twice (in training and test, above all), mean and deviation, and
    the size and the patches that a run would take.

    \b
    maskzoo data photos/ --png photos.png
    maskzoo data hf:uoft-cs/cifar100 --set data.label_column=fine_label
    maskzoo data shards:s3://bucket/folder --look 64
    maskzoo data recipe.toml --all --json data.json
    """
    from maskzoo.flags import changed
    from maskzoo.overview.whole import overview, recipe_of
    from maskzoo.recipe import Recipe
    from maskzoo.registry import Registry
    from maskzoo.terminal import Console

    registry = Registry()
    recipe, data = recipe_of(source)
    plain = changed(recipe, registry, settings=settings, note=_note, data=data, backbone=backbone)
    overview(Recipe.from_plain(plain), registry, Console(), most=None if every else look, png=png, json=json)


@main.command(short_help="Say what a step and a run cost in FLOPs.")
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@overrides
def cost(recipe: Path | None, **changes: Any) -> None:
    """Say what a step costs: FLOPs of an image, without data, memory or time.

    RECIPE and the options are those of `maskzoo train`. Matrix products, convolutions and attention are counted.
    """
    from maskzoo.cost import cost_table
    from maskzoo.flags import changed
    from maskzoo.recipe import Recipe
    from maskzoo.registry import Registry
    from maskzoo.terminal import Console

    registry = Registry()
    plain = changed(recipe, registry, note=_note, **changes)
    Console().print(cost_table(Recipe.from_plain(plain), registry), highlight=False)


@main.command(short_help="Measure an encoder by k-NN, probes or fine-tuning.")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option(
    "--with", "evaluators", metavar="NAME,...", help="Evaluators, e.g. knn:[5,20],linear [default: the run's]."
)
@click.option("--data", metavar="NAME|FOLDER", help="Data to evaluate on [default: the run's].")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "class"]),
    default="mean",
    show_default=True,
    help="Features: the mean of the patches' tokens, or the class token.",
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cuda, mps or cpu.")
@click.option(
    "--workers",
    type=click.IntRange(0, MOST_WORKERS),
    metavar="N",
    help="Processes that read images [default: the run's].",
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option, e.g. linear.epochs=50 (repeatable)."
)
@click.option("--backbone", metavar="NAME", help="In place of a run: any timm model, or a registered backbone.")
@click.option("--weights", type=click.Path(path_type=Path), metavar="PATH", help="Weights for --backbone.")
@click.option("--pretrained", is_flag=True, help="timm's own weights for --backbone, downloaded.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Where the metrics of --backbone go.")
def evaluate(
    run: Path | None, backbone: str | None, weights: Path | None, pretrained: bool, out: Path | None, **wishes: Any
) -> None:
    """Measure what the encoder of RUN has learned, by its newest checkpoint, or any other encoder.

    The figures go into evaluation.json, each with the settings it was measured under. A figure of the same settings is
    replaced, all others stay.
    """
    if (run is None) == (backbone is None):
        raise RecipeError("give the folder of a run, or --backbone with --out")
    if backbone is None and (weights is not None or pretrained or out is not None):
        raise RecipeError("--weights, --pretrained and --out go with --backbone; a run has its own")
    if backbone is not None and out is None:
        raise RecipeError("--out: say in which folder the figures of --backbone are to be kept")
    from maskzoo.evaluate import Wishes, evaluate_backbone, evaluate_run
    from maskzoo.flags import data_of
    from maskzoo.registry import Registry
    from maskzoo.terminal import Console

    registry = Registry()
    if wishes["data"] is not None:
        wishes["data"] = data_of(wishes["data"], registry)
    if run is not None:
        evaluate_run(run, Wishes(**wishes), registry, Console())
    elif backbone is not None and out is not None:
        evaluate_backbone(backbone, weights, pretrained, out, Wishes(**wishes), registry, Console())


@main.command(short_help="Draw what a masker hides of images.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option("--masker", metavar="NAME", help="Masking strategy; by default random, or the run's.")
@SCHEDULE
@RATIO
@click.option(
    "--moments",
    type=int,
    default=5,
    show_default=True,
    metavar="N",
    help="Moments from first step to last, at most 20.",
)
@click.option("--run", type=click.Path(path_type=Path), metavar="RUN", help="A run, through whose model to look.")
@click.option("--backbone", metavar="NAME", help="Without a run: a timm model, or a registered backbone.")
@click.option("--pretrained", is_flag=True, help="With timm's weights for --backbone, downloaded.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="Random seed of the masks.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("preview.png"),
    metavar="FILE",
    show_default=True,
    help="The PNG.",
)
@click.option("--no-terminal", is_flag=True, help="Do not draw in the terminal too.")
def preview(images: tuple[Path, ...], out: Path, no_terminal: bool, **wish: Any) -> None:
    """Draw what a masker hides of IMAGE files over its curriculum, without training.

    Those that look through a model (attmask, pooled-query, clmae) need --run, or, where they learn nothing, --backbone.
    """
    from maskzoo.preview import Wish
    from maskzoo.preview import preview as draw
    from maskzoo.recipe import parse
    from maskzoo.registry import Registry
    from maskzoo.terminal import Console

    read = {name: parse(text) for name in ("masker", "schedule", "ratio") if (text := wish.pop(name)) is not None}
    draw(images, Wish(**read, **wish), out, Registry(), Console(), terminal=not no_terminal)


@main.command(short_help="Write an encoder for timm or as safetensors.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--to", type=click.Choice(["timm", "safetensors"]), default="timm", show_default=True, help="Target format."
)
@click.argument("folder", type=click.Path(path_type=Path))
def export(run: Path, to: str, folder: Path) -> None:
    """Write the encoder that RUN has trained into FOLDER, for use elsewhere.

    After `--to timm`, timm.create_model('local-dir:FOLDER', pretrained=True) has it, and timm's transforms fit.
    """
    from maskzoo.export import export as write
    from maskzoo.registry import Registry
    from maskzoo.terminal import Console
    from maskzoo.trained import open_run

    trained = open_run(run, Registry())
    for sentence in [*trained.remarks, *write(trained, to, folder)]:
        Console(soft_wrap=True).print(sentence, highlight=False, markup=False)


@main.command(cls=OfSeveralSeeds, short_help="Compare maskers over several seeds, with a report.")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
@click.option("--maskers", metavar="CELL,...", help="Cells, e.g. random,attmask+adversary,clmae@0.6.")
@click.option("--vary", multiple=True, metavar="KEY=VALUE,...", help="Each value with each masker (repeatable).")
@click.option("--seeds", default="3", show_default=True, metavar="N|LIST", help="How many seeds, or which, e.g. 0,7.")
@click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE", help="The recipe that all cells share.")
@overrides
@click.option("--baseline", metavar="CELL", help="What the others are compared with; else the first.")
@click.option(
    "--equal",
    type=click.Choice(["epochs", "flops", "time"]),
    default="epochs",
    show_default=True,
    help="What every cell may spend: the recipe's epochs, or the baseline's FLOPs or time.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, MOST_WORKERS),
    default=1,
    show_default=True,
    metavar="N",
    help="Parallel runs (on each of --devices).",
)
@click.option("--devices", default="", metavar="NAME,...", help="Devices to run on in parallel, e.g. cuda:0,cuda:1.")
@click.option(
    "--launcher",
    type=click.Choice(["local", "submitit"]),
    default="local",
    show_default=True,
    help="submitit: to SLURM.",
)
@click.option(
    "--launch", multiple=True, metavar="KEY=VALUE", help="For submitit, e.g. slurm_partition=gpu (repeatable)."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("comparison"),
    metavar="FOLDER",
    show_default=True,
    help="Where plan, runs and report go.",
)
@click.option("--scores", default="", metavar="NAME,...", help="What table.tex and the terminal show, e.g. knn,linear.")
@click.option("--with-command", is_flag=True, help="Keep in sources/ also who started each run, where, and how.")
@click.option("--replace", is_flag=True, help="Replace the report of another comparison in --out.")
@click.option("--dry-run", is_flag=True, help="Print the plan and what it costs, and train nothing.")
def compare(runs: tuple[Path, ...], recipe: Path | None, settings: tuple[str, ...], **options: Any) -> None:
    """Compare maskers over several seeds: train what is missing, evaluate, and write a report.

    A CELL is masker[+schedule][@ratio].

    Stopped at any point (exit code 75), the same command goes on where it was; so does --out FOLDER alone. With RUN
    after RUN, report on runs that are there already. The report is one page, report.html, beside tables and figures.
    """
    from maskzoo.terminal import Console

    console = Console()
    ours = (
        *("maskers", "vary", "seeds", "baseline", "equal", "jobs", "devices", "launcher", "launch", "out", "dry_run"),
        *("scores", "with_command", "replace"),
    )
    wishes = {name: options.pop(name) for name in ours}
    given = recipe is not None or bool(settings) or any(value is not None for value in options.values())
    typed = _typed(wishes)
    if runs:
        if given or typed - {"out", "baseline", "scores", "with_command", "replace"}:
            raise RecipeError(
                "with runs that are there go --out and --baseline alone (and --scores, --with-command, --replace); say "
                "with --maskers what is to be trained, or name runs, but not both"
            )
        from maskzoo.compare.report import report_on

        shown = {name: wishes[name] for name in ("scores", "with_command")}
        report_on(wishes["out"], runs, wishes["baseline"], console, another=wishes["replace"], **shown)
        return
    if options["seed"] is not None:
        raise RecipeError("--seed: a comparison has several; say which with --seeds, e.g. --seeds 5 or --seeds 0,7")
    from maskzoo.compare.whole import compare_all
    from maskzoo.flags import changed
    from maskzoo.registry import Registry

    if options["masker"] is not None and wishes["maskers"] is not None:
        raise RecipeError("--masker: the maskers of a comparison are those of --maskers; name it there")
    if options["schedule"] is not None and wishes["maskers"] is not None:
        raise RecipeError("--schedule: each masker of --maskers has its own; write it behind a +, e.g. attmask+partner")
    registry = Registry()
    base = None
    if given or wishes["maskers"] is not None or wishes["vary"]:
        base = changed(recipe, registry, settings=settings, note=_note, **options)
    elif planned := sorted(typed & {"seeds", "baseline", "equal"}):
        raise RecipeError(f"--{planned[0]}: the plan in --out says that already; give --maskers for another plan")
    compare_all(base, registry, console, **wishes)


def _typed(names: Iterable[str]) -> set[str]:
    """Those of a command's options that somebody has given, whatever value they have."""
    context = click.get_current_context()
    return {name for name in names if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT}


@main.command(name="list", short_help="List what a recipe can name.")
@click.argument("kinds", nargs=-1, metavar="[KIND]...")
@click.option("--matrix", is_flag=True, help="Which strategy goes with which backbone and objective.")
def list_(kinds: tuple[str, ...], matrix: bool) -> None:
    """List what a recipe can name: strategies, schedules, backbones, objectives, datasets, evaluators, loggers."""
    if matrix:
        print_matrix()
        return
    from rich.markup import escape
    from rich.text import Text

    from maskzoo.listing import Listing
    from maskzoo.registry import KINDS, Registry, nearest
    from maskzoo.show import first_line
    from maskzoo.terminal import Console

    plurals = {f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s": kind for kind in KINDS}
    unknown = [kind for kind in kinds if kind not in plurals]
    if unknown:
        raise RecipeError(f"no kind '{unknown[0]}'; {nearest(unknown[0], plurals)}")
    registry = Registry()
    table = Listing()
    for plural, kind in plurals.items():
        if kinds and plural not in kinds:
            continue
        table.add(Text(plural, style="bold"))
        for name, cls in registry.classes(kind).items():
            owner = registry.owner(kind, name)
            theirs = f" [dim]({escape(owner.distribution)} {owner.version})[/dim]" if owner and not owner.ours else ""
            table.add(f"  {name}", Text.from_markup(escape(first_line(cls)) + theirs))
    Console().print(table)


def print_matrix() -> None:
    """Which strategy goes with which backbone and objective, a table for objectives that provide the same."""
    from rich.text import Text

    from maskzoo.listing import Listing
    from maskzoo.matrix import matrices
    from maskzoo.registry import Registry
    from maskzoo.terminal import Console

    console = Console()
    for matrix in matrices(Registry()):
        console.print(f"[bold]{', '.join(matrix.objectives)}[/bold]")
        head, *rows = matrix.table
        table = Listing(head)
        for name, *cells in rows:
            shown = (cell if cell == "yes" else Text(cell.removeprefix("needs "), style="dim") for cell in cells)
            table.add(name, *shown)
        console.print(table, "")
    console.print("yes, or what is missing there; a composite goes where all of its parts go", style="dim")


@main.command(short_help="Show the options of a class, or the keys of a recipe.")
@click.argument("name")
def show(name: str) -> None:
    """Show what NAME is: options with types, defaults and meanings, needs, paper and plugin.

    NAME may also be `recipe` (all keys of a recipe), one of its sections, e.g. `train`, or a key, e.g. `train.epochs`.
    """
    from maskzoo.registry import KINDS, Registry, nearest
    from maskzoo.show import description, keys_below, known_keys, printed
    from maskzoo.terminal import Console

    registry = Registry()
    found = [(kind, registry.classes(kind)[name]) for kind in KINDS if name in registry.classes(kind)]
    keys = keys_below(name)
    if not found and not keys:
        for kind in KINDS:  # a clash of two plugins has a sentence of its own
            if any(offer.name == name for plugin in registry.plugins for offer in plugin.offers if offer.kind == kind):
                registry.find(kind, name)
        known = [known for kind in KINDS for known in registry.classes(kind)]
        hint = nearest(name, [*known, *known_keys()])
        hint = hint if hint.startswith("did you mean") else nearest(name, known)
        raise RecipeError("; ".join([f"nothing is named '{name}'", hint, *registry.broken()]))
    console = Console()
    for kind, cls in found:
        console.print(description(kind, cls, registry.owner(kind, name)), highlight=False)
    for section in keys:
        console.print(printed(section), highlight=False)


@main.command(short_help="List every plugin and what is wrong with it.")
def plugins() -> None:
    """List every plugin, where it comes from, what it offers, and what is wrong with it."""
    from rich.markup import escape
    from rich.text import Text

    from maskzoo.listing import Listing
    from maskzoo.registry import Registry
    from maskzoo.terminal import Console

    registry, console = Registry(), Console()
    table = Listing(("plugin", "distribution", "offers"))
    for plugin in registry.plugins:
        offers = ", ".join(offer.name for offer in plugin.offers)
        state = Text(f"could not be loaded: {plugin.problem}", style="red") if plugin.problem else offers
        table.add(plugin.name, f"{plugin.distribution} {plugin.version}", state)
    console.print(table)
    for sentence in [*registry.clashes(), *registry.faulty()]:
        console.print(f"[yellow]{escape(sentence)}[/yellow]", highlight=False)
