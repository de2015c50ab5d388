"""The overview of a data set on a terminal, or in a log."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from maskzoo.listing import Listing
from maskzoo.plain import printable

ALL_CLASSES, LARGEST, SMALLEST = 16, 8, 4  # classes that are shown, all or some
PASTED = "  --set '"  # how options begin that are meant to be copied
NAME = 13  # characters of a name, with the space behind it
BAR = 24  # characters of the longest bar
EIGHTHS = " ▏▎▍▌▋▊▉█"
COLOURS = {1: ("grey",), 2: ("grey", "alpha"), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}


def print_overview(told: Mapping[str, Any], console: Console) -> None:
    """Print all that there is to tell, section by section."""
    for title, lines in (
        ("Data", _data(told)),
        ("Classes", [_classes(told["classes"], console)] if told["classes"] else []),
        ("Files", list(_files(told)) if told["sizes"] else []),
        ("Levels", _levels(told)),
        ("A run", _run(told["run"])),
        ("To look at", [Text(f"- {one}", style="yellow") for one in told["concerns"]]),
    ):
        lines = list(lines)
        if not lines:
            continue
        console.print(Text(title, style="bold"))
        for line in lines:
            if isinstance(line, str | Text | tuple):
                for part in wrapped(line, console.width):
                    console.print(part, highlight=False, soft_wrap=True)
            else:
                console.print(line)
        console.print()
    if not told["concerns"]:
        console.print("No problem was seen.", highlight=False)


def wrapped(line: str | Text | tuple[str, str], width: int) -> Iterator[Text]:
    """A line, or a name and what there is to say of it, in as many lines as it takes; what is to be copied is whole."""
    name, said = line if isinstance(line, tuple) else ("", line)
    text = said if isinstance(said, Text) else Text(printable(said))
    if text.plain.startswith(PASTED):
        yield Text("  ") + text
        return
    first = f"  {name:<{NAME}}" if name else "  "
    rest = " " * len(first) if name else "    "
    parts = textwrap.wrap(
        text.plain, max(20, width), initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
    for part in parts:
        yield Text(part, style=text.style)


def _data(told: Mapping[str, Any]) -> Iterator[str]:
    yield from told["remarks"]
    looked, broken = (sum(split[key] for split in told["splits"].values()) for key in ("looked_at", "broken"))
    images = sum(split["images"] for split in told["splits"].values())
    if not told["laid_out"]:
        yield ", ".join(f"{split['images']:,} {name} images" for name, split in told["splits"].items())
    what = f"all {images:,} images"
    if looked < images:
        what = f"{looked:,} of {images:,} images, evenly spread (all of them: --all)"
    yield (
        f"looked at {what}: {broken or 'none'} broken, {told['images_per_second']:,.0f} a second "
        f"({told['threads']} threads)"
    )


def _classes(classes: Sequence[Mapping[str, Any]], console: Console) -> Listing:
    """A row for each class, or for the largest and the smallest."""
    ranked = sorted(classes, key=lambda one: -(one["train"]))
    shown: list[Mapping[str, Any] | str] = list(classes)
    if len(classes) > ALL_CLASSES:
        middle = ranked[LARGEST:-SMALLEST]
        least, most = (end([one["train"] for one in middle]) for end in (min, max))
        shown = [*ranked[:LARGEST], f"{len(middle):,} more, {least:,} to {most:,} each", *ranked[-SMALLEST:]]
    top = max((one["train"] for one in classes), default=0) or 1
    table = Listing(("  class", "train", "test", ""), numbers={1, 2})
    for one in shown:
        if isinstance(one, str):
            table.add(Text(f"  {one}", style="dim"))
            continue
        counts = [f"{one[split]:,}" for split in ("train", "test")]
        table.add(f"  {one['name']}", *counts, Text(_bar(one["train"] / top, console), style="cyan"))
    if classes[0]["counted"] == "seen":
        table.remarks.append("  counted among the images that were looked at")
    return table


def _bar(share: float, console: Console) -> str:
    """A bar of characters, in eighths of one where the terminal has them."""
    if not console.encoding.lower().startswith("utf"):
        return "#" * max(round(share * BAR), 1 if share else 0)
    whole, rest = divmod(max(round(share * BAR * 8), 1 if share else 0), 8)
    return "█" * whole + (EIGHTHS[rest] if rest else "")


def _files(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    files, sizes = told["files"], told["sizes"]
    for title, counts in (("format", files["formats"]), ("numbers", files["numbers"]), ("bands", files["bands"])):
        if counts:
            yield title, _counted(counts)
    if sizes["different"] == 1:
        height, width, _ = sizes["commonest"][0]
        yield "size", f"{height} x {width}, all of them"
    else:
        (low, middle, high), (narrow, usual, wide) = sizes["height"], sizes["width"]
        yield "height", f"{low:,} to {high:,} pixels, half of them below {middle:,.0f}"
        yield "width", f"{narrow:,} to {wide:,} pixels, half of them below {usual:,.0f}"
        common = ", ".join(f"{one[0]} x {one[1]} ({one[2]})" for one in sizes["commonest"][:3] if one[2] > 1)
        yield "sizes", f"{sizes['different']:,} different" + (f"; commonest {common}" if common else "")
    if files["turned"]:
        yield "turned", f"{files['turned']} as their camera says (EXIF)"
    if files["transparent"]:
        yield "transparent", f"{files['transparent']} in parts"
    if files["with_gaps"]:
        yield "missing", f"{100 * files['missing']:.2g} % of the pixels, in {files['with_gaps']} images"


def _counted(counts: Mapping[str, int]) -> str:
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{name} {count}" for name, count in counts.items())


def _levels(told: Mapping[str, Any]) -> Iterator[Any]:
    channels = told["channels"]
    if not channels:
        return
    if told["range"] is not None:
        low, high = told["range"]
        yield f"the stored values {low:.10g} to {high:.10g} are the levels 0 to 1"
    names = COLOURS.get(len(channels), ())
    table = Listing(("  channel", "least", "1 %", "median", "99 %", "most", "mean", "std"), numbers=set(range(1, 8)))
    for number, channel in enumerate(channels):
        name = names[number] if number < len(names) else str(number + 1)
        table.add(f"  {name}", *(f"{value:.3f}" for value in channel.values()))
    yield table
    yield f"normalised by mean {_numbers(told['normalised_by']['mean'])}, std {_numbers(told['normalised_by']['std'])}"
    yield "measured here:"
    for name in ("mean", "std"):
        yield f"{PASTED}data.{name}={_numbers([one[name] for one in channels])}'"


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"


def _run(run: Mapping[str, Any]) -> Iterator[str]:
    if "refused" in run:
        return
    size, grid, patch = (" x ".join(map(str, run[key])) for key in ("size", "grid", "patch"))
    yield f"{run['backbone']} takes {size} pixels, as {grid} patches of {patch}"
    yield from run["remarks"]
