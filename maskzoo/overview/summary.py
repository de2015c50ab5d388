"""What was seen of a data set as plain values, for the terminal, for a page and for programs alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

from maskzoo.build import described, make_backbone
from maskzoo.cost import untaught
from maskzoo.data.labels import counts_of
from maskzoo.data.remarks import remarks_of
from maskzoo.errors import MaskZooError
from maskzoo.overview.looking import AT_ONCE, Look, SeenImage, below
from maskzoo.plain import printable
from maskzoo.protocols import Dataset
from maskzoo.recipe import Recipe
from maskzoo.registry import Registry

MADE_BY = "MaskZoo data"  # what files say of themselves, so that they may be written anew in their place
MOST_NAMED = 100  # broken images and copies that are named one by one
FEW = 3  # that a message names
IMBALANCED = 10  # times as many images of one class as of another that are worth a word
LARGE = 0.2  # share of the images in one class from which top-1 accuracy says little by itself
NEARLY_EMPTY = 1e-4  # deviation of a channel whose pixels are all the same


def summary(dataset: Dataset, look: Look, recipe: Recipe, registry: Registry) -> dict[str, Any]:
    """Everything that is told, in plain values; levels are from 0 to 1, counts are of images."""
    root = getattr(dataset, "root", None) or getattr(dataset, "path", None)
    seen = look.images

    def named(image: SeenImage) -> str:
        return printable(below(image.name, root if isinstance(root, str) else None))

    splits = {
        name: {
            "images": len(split),
            "looked_at": look.asked[name],
            "broken": sum(place[0] == name for place in look.broken),
        }
        for name, split in (("train", dataset.train), ("test", dataset.test))
    }
    told: dict[str, Any] = {
        "made_by": MADE_BY,
        "data": described(dataset),
        "remarks": remarks_of(dataset),
        "laid_out": getattr(dataset, "layout", None) is not None,  # then the remarks say how many images there are
        "splits": splits,
        "classes": classes_of(dataset, seen),
        "files": files_of(seen),
        "sizes": sizes_of(seen),
        "channels": channels_of(look),
        "range": ranged(dataset),
        "normalised_by": {"mean": list(dataset.mean), "std": list(dataset.std)},
        "run": run_of(dataset, recipe, registry),
        "broken": [
            {"split": split, "position": position, "problem": printable(problem)}
            for (split, position), problem in list(look.broken.items())[:MOST_NAMED]
        ],
        "leaks": [[named(test), named(train)] for test, train in look.leaks()][:MOST_NAMED],
        "copies": [[named(image) for image in group] for group in look.copies()][:MOST_NAMED],
        "contradictions": [[named(image) for image in group] for group in look.contradictions()][:MOST_NAMED],
        "counts": {
            "broken": len(look.broken),
            "leaks": len(look.leaks()),
            "copies": sum(len(group) - 1 for group in look.copies()),
            "contradictions": len(look.contradictions()),
        },
        "images_per_second": look.per_second,
        "threads": AT_ONCE,
    }
    return {**told, "concerns": concerns(told)}


def classes_of(dataset: Dataset, seen: Sequence[SeenImage]) -> list[dict[str, Any]] | None:
    """The classes with how many images of each there are; None without labels.

    Where to know that means to read all, the images that were looked at are counted ("counted": "seen").
    """
    if dataset.classes is None:
        return None
    splits = {"train": dataset.train, "test": dataset.test}
    counts = {name: counts_of(split, len(dataset.classes)) for name, split in splits.items()}
    looked = Counter((image.split, image.label) for image in seen)
    return [
        {
            "name": printable(name),
            **{
                split: looked[split, number] if found is None else int(found.by_class[number])
                for split, found in counts.items()
            },
            "counted": "seen" if counts["train"] is None else "all",
        }
        for number, name in enumerate(dataset.classes)
    ]


def files_of(seen: Sequence[SeenImage]) -> dict[str, Any]:
    """Formats, numbers and bands of the files, and what is special about some of them, by how many images."""

    def counted(values: Sequence[str]) -> dict[str, int]:
        return dict(Counter(value for value in values if value).most_common())

    return {
        "formats": counted([image.format for image in seen]),
        "numbers": counted([image.kind for image in seen]),
        "bands": counted([image.bands for image in seen]),
        "turned": sum(image.turned for image in seen),
        "transparent": sum(image.transparent for image in seen),
        "grey": sum(image.grey for image in seen),
        "with_gaps": sum(image.missing > 0 for image in seen),
        "missing": sum(image.missing for image in seen) / max(1, len(seen)),
    }


def sizes_of(seen: Sequence[SeenImage]) -> dict[str, Any]:
    """Least, middle and largest height and width in pixels, and the commonest sizes."""
    if not seen:
        return {}
    sizes = Counter((image.height, image.width) for image in seen)
    heights, widths = [image.height for image in seen], [image.width for image in seen]
    return {
        "height": [min(heights), median(heights), max(heights)],
        "width": [min(widths), median(widths), max(widths)],
        "different": len(sizes),
        "commonest": [[*size, count] for size, count in sizes.most_common(5)],
    }


def channels_of(look: Look) -> list[dict[str, float]]:
    """The levels of each channel."""
    if look.levels is None:
        return []
    held = look.levels
    columns = {
        "least": held.low,
        "percent_1": held.at(0.01),
        "median": held.at(0.5),
        "percent_99": held.at(0.99),
        "most": held.high,
        "mean": held.mean,
        "std": held.std,
    }
    count = len(held.low)
    return [{name: round(float(column[place]), 6) for name, column in columns.items()} for place in range(count)]


def ranged(dataset: Any) -> list[float] | None:
    """The stored values of the levels 0 and 1, where images are not read as all values of their kind."""
    held = getattr(getattr(dataset, "reading", None), "range", None)
    return None if held is None else list(held)


def run_of(dataset: Dataset, recipe: Recipe, registry: Registry) -> dict[str, Any]:
    """The size to which a run would bring the images, and how it would cut them; or why it would refuse them."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            backbone: Any = make_backbone(untaught(recipe.backbone), dataset, registry)
    except MaskZooError as problem:
        return {"refused": printable(problem)}
    size = [count * side for count, side in zip(backbone.grid, backbone.patch_size, strict=True)]
    return {
        "backbone": str(getattr(backbone, "timm", backbone.name)),
        "size": size,
        "grid": list(backbone.grid),
        "patch": list(backbone.patch_size),
        "remarks": [printable(one) for one in getattr(backbone, "remarks", ())],
    }


# ------------------------------------------------------------------------------------------------------------ concerns
def concerns(told: Mapping[str, Any]) -> list[str]:
    """What to look at before training, the gravest first."""
    counts = told["counts"]
    looked = sum(split["looked_at"] for split in told["splits"].values())
    some = "" if looked == sum(split["images"] for split in told["splits"].values()) else ", of those looked at"
    found = []
    if counts["broken"]:
        found.append(f"{counts['broken']} of {looked} images cannot be read: {told['broken'][0]['problem']}")
    if counts["leaks"]:
        pairs = "; ".join(f"{test} is {train}" for test, train in told["leaks"][:FEW])
        what = f"{_images(counts['leaks'], 'test image')} also among the training images{some}, to the pixel"
        found.append(f"{what}: {pairs}")
    if counts["contradictions"]:
        group = " and ".join(told["contradictions"][0][:2])
        found.append(f"{_images(counts['contradictions'], 'image')} there with several labels: {group}")
    if counts["copies"] > counts["leaks"]:
        what = f"{_images(counts['copies'], 'image')} there more than once{some}, to the pixel"
        found.append(f"{what}: {' is '.join(told['copies'][0][:2])}")
    if refused := told["run"].get("refused"):
        found.append(f"a run would be refused: {refused}")
    return [*found, *_of_classes(told["classes"]), *_of_channels(told, looked)]


def _images(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'} {'is' if count == 1 else 'are'}"


def _of_classes(classes: Sequence[Mapping[str, Any]] | None) -> list[str]:
    counts = [one["train"] for one in classes or () if one["train"]]
    if len(counts) < 2 or max(counts) < IMBALANCED * min(counts):
        return []
    told = f"the largest class has {max(counts) / min(counts):,.0f} times as many training images as the smallest"
    share = max(counts) / sum(counts)
    return [told + (f"; always to answer it is right in {100 * share:.0f} % of them" if share >= LARGE else "")]


def _of_channels(told: Mapping[str, Any], looked: int) -> list[str]:
    found = [
        f"channel {number} has the same value everywhere"
        for number, channel in enumerate(told["channels"], start=1)
        if channel["std"] < NEARLY_EMPTY
    ]
    readable = looked - told["counts"]["broken"]
    if readable and told["files"]["grey"] == readable:
        found.append("all images are grey: with data.channels = 1 they take a third of the memory")
    return found
