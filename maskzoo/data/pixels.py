"""What image files become: the one place that decides mode, range, bits, bands, transparency and orientation.

A data set inherits `ReadsImages`, and reads all its images by the `Reading` that this decides on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from maskzoo.bands import wrong_channels
from maskzoo.bounds import MOST_WIDTH, between
from maskzoo.data.formats import ARRAYS, EXTENSIONS, FORMATS, PICTURES, opened
from maskzoo.data.looking import Seen, commonest, look, measure, range_of, statistics
from maskzoo.data.reading import KEPT, STATISTICS, Pixels, Reading, colour_of
from maskzoo.errors import RecipeError
from maskzoo.plain import quoted
from maskzoo.protocols import Split, define

__all__ = [
    "ARRAYS",
    "EXTENSIONS",
    "FORMATS",
    "PICTURES",
    "STATISTICS",
    "Pixels",
    "Reading",
    "ReadsImages",
    "opened",
    "reading_of",
]
KINDS = ("uint8", "uint16", "uint32", "uint64", "int", "float")


def a_range(_: object, field: attrs.Attribute[Any], value: tuple[float, float] | None) -> None:
    """Refuse two ends that are one, or infinite."""
    if value is not None and (value[0] == value[1] or not all(map(math.isfinite, value))):
        raise RecipeError(
            f"must be two different numbers, those that become black and white, got {quoted(value)}", key=field.name
        )


def some_bands(_: object, field: attrs.Attribute[Any], value: tuple[int, ...] | None) -> None:
    """Refuse bands that no file has."""
    if value is not None and (not value or not all(1 <= band <= MOST_WIDTH for band in value)):
        raise RecipeError(f"must be numbers of bands, of which the first is 1, got {quoted(value)}", key=field.name)


def a_colour(_: object, field: attrs.Attribute[Any], value: str) -> None:
    """Refuse what is no colour."""
    try:
        colour_of(value)
    except ValueError:
        raise RecipeError(f"{quoted(value)} is no colour; write a name or #rrggbb", key=field.name) from None


def deviations(_: object, field: attrs.Attribute[Any], value: tuple[float, ...] | None) -> None:
    """Refuse what nothing can be divided by."""
    if value is not None and not all(one > 0 for one in value):
        raise RecipeError(f"must be greater than 0, got {quoted(value)}", key=field.name)


def known_kinds(_: object, field: attrs.Attribute[Any], value: tuple[str, ...] | None) -> None:
    """Refuse a kind of number that there is not."""
    if value is not None and (not value or any(one not in KINDS for one in value)):
        raise RecipeError(f"must be some of {', '.join(KINDS)}, got {quoted(value)}", key=field.name)


@define
class ReadsImages:
    """The options by which a data set says how its images are read, and what follows from those left open.

    `reading` is what was decided, `remarks` what has to be told of it.
    """

    # channels of an image: 1 grey, 3 RGB, 2 and 4 with transparency, or as many as there are bands; unless given, 3 of
    # pictures, and as many as there are bands of anything else
    channels: int | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(between(1, MOST_WIDTH))
    )
    # which bands of a file become channels, in their order: [4, 3, 2]; the first band, or page of a TIFF, is 1
    bands: tuple[int, ...] | None = attrs.field(default=None, kw_only=True, validator=some_bands)
    # stored values that become the levels 0 and 1, such as [0, 4095] of 12 bits; unless given, decided once for all
    # images by what some of them hold
    range: tuple[float, float] | None = attrs.field(default=None, kw_only=True, validator=a_range)
    # the stored value that stands for a missing one; unless given, what the files say (GDAL_NODATA), if they do
    nodata: float | None = attrs.field(default=None, kw_only=True)
    # whether values may be missing; unless given, in floating point (NaN), with nodata, and where files have masks
    gaps: bool | None = attrs.field(default=None, kw_only=True)
    # the colour behind transparent pictures, by name or as in HTML, where no channel keeps the transparency
    background: str = attrs.field(default="white", kw_only=True, validator=a_colour)
    # name of the array that is the image, in files of several (.npz, HDF5)
    array: str = attrs.field(default="", kw_only=True)
    # kinds of stored numbers, such as ["uint16"] or ["float"]: files of another are refused; unless given, what most of
    # them have
    kinds: tuple[str, ...] | None = attrs.field(default=None, kw_only=True, validator=known_kinds)
    # channels that pictures show as red, green and blue, such as [4, 3, 2], or the one that they show; the first is 1
    shown: tuple[int, ...] | None = attrs.field(default=None, kw_only=True)
    # of each channel, in levels; unless given, ImageNet's for pictures of 8 bits, else measured once
    mean: tuple[float, ...] | None = attrs.field(default=None, kw_only=True)
    # of each channel, in levels; unless given, ImageNet's for pictures of 8 bits, else measured once
    std: tuple[float, ...] | None = attrs.field(default=None, kw_only=True, validator=deviations)

    @classmethod
    def before(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """What a recipe meant by these options before there were any but `channels`."""
        statistics = STATISTICS.get(options.get("channels", 3))
        found: dict[str, Any] = {"gaps": False, "kinds": list(KEPT[:1])}
        return found | ({} if statistics is None else {"mean": list(statistics[0]), "std": list(statistics[1])})

    def decide(self, train: Split, *, required: bool = True) -> Reading:
        """How all images are read, after a look at some of those to train on; settles the options that are open.

        Nothing is looked at where all are settled, or in a stream. RecipeError where options do not fit each other,
        DataError where the files are of no use together, or where none can be read, if any is `required`.
        """
        self.remarks: Sequence[str] = getattr(self, "remarks", ())
        if self.bands is not None and self.channels not in (None, len(self.bands)):
            raise RecipeError(f"{len(self.bands)} bands make no {self.channels} channels; leave out one", key="bands")
        settled = None not in (self.channels, self.kinds, self.gaps, self.mean, self.std)
        files: Any = train if hasattr(train, "stored") else ()
        draft = Reading(self.channels or 0, None, self.bands, self.nodata, self.background, self.array)
        seen = [] if settled or not len(files) else look(files, draft, required=required)
        seen = self._settle_kinds(files, seen, draft)
        self._settle_channels(seen)
        self._settle_gaps(seen)
        self._settle_numbers(files, seen)
        self._settle_statistics(files, seen)
        if self.shown is not None and (seen or settled) and (wrong := wrong_channels(self.shown, self.channels or 0)):
            raise RecipeError(wrong, key="shown")
        self.reading = self._reading()
        return self.reading

    def _tell(self, message: str) -> None:
        self.remarks = [*self.remarks, message]

    def _reading(self) -> Reading:
        assert self.channels is not None
        return Reading(
            *(self.channels, self.range, self.bands, self.nodata, self.background, self.array, self.kinds),
            gaps=bool(self.gaps),
        )

    def _settle_kinds(self, files: Any, seen: list[Seen], draft: Reading) -> list[Seen]:
        """Decide of which kinds images are; the images of those."""
        if self.kinds is None:
            self.kinds = (commonest([one.kind for one in seen]) if seen else "uint8",)
            deep = [one for one in seen if one.kind == "uint16"]
            if {one.kind for one in seen} == {*KEPT} and self.range is None:
                measured = measure(files, deep, attrs.evolve(draft, gaps=True))
                if measured is not None and range_of("uint16", deep, measured)[0] is None:
                    self.kinds = KEPT  # white is white in both
        others = [one for one in seen if one.kind not in self.kinds]
        if others:
            self._tell(
                f"{len(others)} of {len(seen)} images looked at hold numbers of the kind {others[0].kind}, the others "
                f"{' or '.join(self.kinds)}: they are refused"
            )
        return [one for one in seen if one.kind in self.kinds]

    def _settle_channels(self, seen: Sequence[Seen]) -> None:
        if moving := sum(one.moving for one in seen):
            self._tell(f"{moving} of {len(seen)} images looked at are animations: their first picture counts")
        if self.channels is None and self.bands is not None:
            self.channels = len(self.bands)
        if self.channels is None and (not seen or all(one.colours for one in seen)):
            self.channels = 3
        if self.channels is None:
            self.channels = commonest([one.bands for one in seen])
            other = sum(one.bands not in (1, self.channels) for one in seen)
            self._tell(
                f"images have {self.channels} channel{'' if self.channels == 1 else 's'}, as many as their files "
                "have bands" + (f"; {other} of {len(seen)} looked at have others, and are refused" if other else "")
            )
        if self.channels in (1, 3) and self.bands is None and (shining := sum(one.transparent for one in seen)):
            self._tell(
                f"{shining} of {len(seen)} images looked at are transparent in parts: laid over {self.background} "
                "(data.background)"
            )

    def _settle_gaps(self, seen: Sequence[Seen]) -> None:
        told = {one.nodata for one in seen if one.nodata is not None and math.isfinite(one.nodata)}
        if self.nodata is None and told:
            self.nodata = commonest([one.nodata for one in seen if one.nodata in told])
            self._tell(f"{self.nodata:.10g} stands for a missing value, as files say (data.nodata)")
        if self.gaps is None:
            assert self.kinds is not None
            floating = "float" in self.kinds
            self.gaps = floating or self.nodata is not None or any(one.masked for one in seen)

    def _settle_numbers(self, files: Any, seen: Sequence[Seen]) -> None:
        """Decide on the range, where not all bits of all files are in use."""
        assert self.kinds is not None
        deep = [one for one in seen if one.kind != "uint8"]
        if self.range is not None or not deep:
            return
        measured = measure(files, deep, attrs.evolve(self._reading(), gaps=True))
        if measured is None:
            return
        self.range, why = range_of(deep[0].kind, deep, measured)
        end = "" if self.range is None else f" (data.range = [{self.range[0]:.10g}, {self.range[1]:.10g}])"
        self._tell(why + end)
        if measured.fill is not None:
            value, share = measured.fill
            short = float(str(np.float32(value)))  # 1e20, and not what its four bytes are to ten digits
            shown = f"{short if np.float32(value) == value else value:.10g}"
            self._tell(
                f"{share:.1%} of the values are exactly {shown}, far from all others: if that stands for a missing "
                f"value, set data.nodata = {shown}"
            )

    def _settle_statistics(self, files: Any, seen: Sequence[Seen]) -> None:
        assert self.channels is not None
        ordinary = all(one.kind == "uint8" and one.colours for one in seen) or self.kinds == KEPT
        if self.channels in STATISTICS and ordinary and self.range is None and self.bands is None:
            mean, std = STATISTICS[self.channels]
        else:
            mean, std = (0.5,) * self.channels, (0.25,) * self.channels
            found = statistics(files, seen, self._reading()) if seen and None in (self.mean, self.std) else None
            if found is not None:
                images = f"{len(seen)} {'image' if len(seen) == 1 else 'images'}"
                constant = np.flatnonzero(found[1] <= 1e-6 * np.maximum(1, np.abs(found[0]))) + 1
                found[1][constant - 1] = 1
                mean, std = (tuple(float(f"{value:.6g}") for value in values) for values in found)
                self._tell(f"mean and deviation of each channel were measured on {images} (data.mean, data.std)")
                if len(constant):
                    self._tell(f"channel {', '.join(map(str, constant))} is constant in all of them")
        self.mean, self.std = self.mean or mean, self.std or std
        for key in ("mean", "std"):
            if len(getattr(self, key)) != self.channels:
                raise RecipeError(f"must have {self.channels} values, one for each channel", key=key)


def reading_of(data: object, channels: int) -> Reading:
    """How a data set reads images that is described by a resolved recipe, and that is not here."""
    options: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
    known = {field.name for field in attrs.fields(Reading)} - {"channels"}
    told: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in options.items() if key in known
    }
    return Reading(channels, **told)
