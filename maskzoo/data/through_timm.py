"""Whatever data set timm can open: by its readers, as a split where images can be looked up, else as a stream."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, ClassVar

import attrs
import torch
from PIL import Image

from maskzoo.bounds import MOST_CLASSES, MOST_SHARDS, MOST_STEPS, between
from maskzoo.data import labels
from maskzoo.data.folder import check_still_there
from maskzoo.data.folders_of_timm import both_spellings, looked_over
from maskzoo.data.naming import label_of_folder
from maskzoo.data.pixels import Reading, ReadsImages
from maskzoo.data.shards import check_ranges
from maskzoo.data.sizes import a_size, settle_size
from maskzoo.errors import ContractError, DataError, MaskZooError, RecipeError
from maskzoo.plain import not_empty
from maskzoo.protocols import Sample, Split, define

STREAMED = ("wds", "hfids", "tfds")  # what timm can only read in order
PACKAGES = {  # what each needs, and how to get it
    "hfds": ("datasets", "maskzoo[data]"),
    "hfids": ("datasets", "maskzoo[data]"),
    "wds": ("webdataset", "maskzoo[data]"),
    "tfds": ("tensorflow_datasets", "tensorflow tensorflow-datasets"),
}
HELD_BACK = {"name", "root", "split", "is_training", "batch_size", "seed", "repeats", "input_img_mode", "load_bytes"}
UNSAFE = {  # of timm's create_dataset, and what would be right
    "trust_remote_code": "it runs programs of the source; convert such a data set to parquet or to shards",
    "cache_tarinfo": "it reads and writes pickles among the images; tar files are gone through at each start",
    "cache_dir": "it is `root`",
    "loader": "images are decoded here",
    "transform": "images are augmented here",
    "target_transform": "labels are numbers",
    "is_valid_file": "every image counts",
}
SCHEMES = ("http", "https", "ftps", "sftp", "scp", "gs", "htgs", "hf", "ais", "s3")  # by which webdataset fetches


@define
class ThroughTimm(ReadsImages):
    """Any data set that timm opens: of Hugging Face, torchvision or TensorFlow, WebDataset's, folders and tar files.

    What timm reads in order (hfids/, wds/, tfds/) is a stream. tfds/ has never been tried here: it follows timm's code.
    """

    name: ClassVar[str] = "timm"

    source: str = ""  # as timm names it: hfds/..., hfids/..., wds/..., tfds/..., torch/..., or none: a folder or a tar
    # the folder to read from, or to download into
    root: str | None = attrs.field(default=None, validator=not_empty)
    train_split: str = "train"  # name of the training split
    test_split: str = ""  # name of the test split; empty: none
    # training images, where the source does not know how many there are
    train_images: int | None = attrs.field(default=None, validator=attrs.validators.optional(between(1, MOST_STEPS)))
    # test images, where the source does not know how many there are
    test_images: int | None = attrs.field(default=None, validator=attrs.validators.optional(between(1, MOST_STEPS)))
    labels: bool = True  # whether the images have labels
    # number of classes; None: as the source says
    class_count: int | None = attrs.field(default=None, validator=attrs.validators.optional(between(1, MOST_CLASSES)))
    # height and width; unless given, the images' own if it is one, or 224
    size: int | tuple[int, int] | None = attrs.field(default=None, validator=a_size)
    flip: bool = True  # whether a mirrored image still shows the same
    shares: int = attrs.field(default=4, validator=between(1, MOST_SHARDS))  # of a stream, read side by side
    options: Mapping[str, Any] = attrs.field(factory=dict)  # anything else for timm's create_dataset

    def __attrs_post_init__(self) -> None:
        check_extra(self.source)
        if refused := sorted(HELD_BACK & self.options.keys()):
            raise RecipeError(f"'{refused[0]}' is MaskZoo's to set", key="options")
        check_options(self.options)
        self.remarks: list[str] = []
        self.older_classes: Sequence[str] | None = None  # in timm's own order, by which MaskZoo once numbered them
        train, names = self._open(self.train_split, self.train_images)
        self.train: Split = train
        self.test: Split = NoImages()
        train.reading = self.decide(train)
        if self.test_split:
            test, _ = self._open(self.test_split, self.test_images, known=names or {})
            test.reading = train.reading
            self.test = test
            self._check_apart(train, self.test)
        self.classes: Sequence[str] | None = self._classes(names)
        settle_size(self, self.train)

    @property
    def kind(self) -> str:
        """The first part of the source's name: hfds, hfids, wds, tfds, torch, or nothing."""
        return self.source.partition("/")[0].lower() if "/" in self.source else ""

    def _open(
        self, split: str, images: int | None, known: Mapping[str, int] | None = None
    ) -> tuple[TimmImages | TimmStream, Mapping[str, int] | None]:
        """A split, and the numbers of its classes by name if the source knows them.

        For test images `known` are those of the training classes: a folder that lacks one would number others anew.
        """
        call: dict[str, Any] = {"name": self.source, "root": self.root, "split": split, **self.options}
        if self.kind == "wds":
            check_places(self.root, [split.partition("|")[0]])
            check_ranges(split, "train_split" if known is None else "test_split")
        if self.kind in STREAMED:
            if images is not None:
                call["num_samples"] = images
            # TensorFlow reads with threads of its own, and timm tells its shares apart by the loader's workers alone.
            single = known is not None or self.kind == "tfds"
            stream = TimmStream(call, self.labels, 1 if single else self.shares)
            return stream, stream.class_numbers
        if self.kind == "" and self.root is not None:
            if known and "class_map" not in call:
                call["class_map"] = both_spellings(known)
            if os.path.isfile(self.root):
                call["cache_tarfiles"] = False  # an open file would be shared, its position too, with each worker
                call["cache_tarinfo"] = False  # a pickle among the images, which anybody may have put there
        if self.kind in ("", "torch") and self.root is None:
            raise RecipeError("say where the images are", key="root")
        folder = self.root if self.kind == "" and os.path.isdir(self.root or "") else None
        dataset = opened(call)
        if self.kind == "" and known is None and self.labels and "class_map" not in call:
            dataset = self._by_name(dataset, call)
        found = TimmImages(dataset, self.source or str(self.root), self.labels, folder)
        if folder is not None and found.place is not None:
            map_of_ours = call.get("class_map") if known and "class_map" not in self.options else None
            self.remarks += looked_over(found.dataset.reader, folder, map_of_ours)
        return found, found.class_numbers

    def _by_name(self, dataset: Any, call: Mapping[str, Any]) -> Any:
        """The same images with their classes numbered by name, as `folder` and torchvision do; timm counts: 2, 10."""
        numbers = class_numbers(dataset) or {}
        natural, names = sorted(numbers, key=numbers.__getitem__), sorted(numbers)
        if natural == names:
            return dataset
        self.older_classes = [label_of_folder(name) for name in natural]
        order = labels.listed([label_of_folder(name) for name in names])
        self.remarks.append(
            f"classes are numbered by name ({order}), as torchvision does; timm by itself takes the natural order "
            f"({labels.listed(self.older_classes)}) unless it is given the class_map of an export"
        )
        return opened({**call, "class_map": {name: number for number, name in enumerate(names)}})

    def _check_apart(self, train: Split, test: Split) -> None:
        """Raise RecipeError where both splits are one folder or file: timm takes the root where it finds no split."""
        if isinstance(train, TimmImages) and isinstance(test, TimmImages) and train.place and train.place == test.place:
            raise RecipeError(
                f"there is no folder '{self.test_split}' in '{self.root}', so the test images would be the training "
                'images; name another, or "" for none',
                key="test_split",
            )

    def _classes(self, names: Mapping[str, int] | None) -> Sequence[str] | None:
        """The classes by number; RecipeError where nobody knows how many there are."""
        if not self.labels:
            return None
        if names:
            known = {number: label_of_folder(name) for name, number in names.items()}
            return [known.get(number, str(number)) for number in range(max(known) + 1)]
        if self.class_count is None:
            raise RecipeError(
                f"'{self.source}' does not tell its classes; say how many there are, or set labels = false",
                key="class_count",
            )
        return [str(number) for number in range(self.class_count)]


class NoImages:
    """A split without images."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Sample:
        raise IndexError(index)


def check_extra(source: str) -> None:
    """Raise RecipeError where timm's reader for this source needs a package that is not installed."""
    package, extra = PACKAGES.get(source.partition("/")[0].lower() if "/" in source else "", ("", ""))
    if package and find_spec(package) is None:
        raise RecipeError(
            f"'{source}' needs the package {package.replace('_', '-')}, which is not installed: pip install "
            + (f"'{extra}'" if "[" in extra else extra),
            key="source",
        )


def check_options(options: Mapping[str, Any]) -> None:
    """Raise RecipeError for options that would run or unpickle what lies among the images."""
    if unsafe := sorted(UNSAFE.keys() & options.keys()):
        raise RecipeError(f"{unsafe[0]} cannot be given here; {UNSAFE[unsafe[0]]}", key="options")
    numbers = options.get("class_map")
    if isinstance(numbers, str) and not numbers.lower().endswith(".txt"):
        raise RecipeError(
            f"class_map: '{numbers}' is no text file of one class a line; name such a file (.txt), or give a table of "
            "numbers. Pickles are not read",
            key="options",
        )
    if numbers is not None and not isinstance(numbers, str | Mapping):
        raise RecipeError("class_map: expected the name of a text file, or a table of numbers", key="options")


def check_places(root: str | None, files: Sequence[str]) -> None:
    """Raise RecipeError for shards of which webdataset would run a program, or hand a shell's signs to one.

    `pipe:` runs whatever follows; older versions of webdataset fetch all URLs by the command line.
    """
    for file in (part for name in files for part in name.split("::")):
        place = os.path.join(root or "", file).strip()
        scheme = re.match(r"([A-Za-z][\w+.-]*):", place)
        if scheme is None or scheme[1].lower() == "file" or (os.name == "nt" and len(scheme[1]) == 1):
            continue  # a file of this machine
        if scheme[1].lower() not in SCHEMES or re.search(r"['\"`\\\x00-\x20]", place):
            raise RecipeError(
                f"'{place}' is neither a file nor a URL that shards can be fetched from ({', '.join(SCHEMES)})",
                key="root" if root else "train_split",
            )


def opened(call: Mapping[str, Any]) -> Any:
    """What timm's create_dataset gives for these arguments; DataError for whatever it raises."""
    from timm.data import create_dataset

    try:
        return create_dataset(**call)
    except TypeError as error:  # an argument that a reader does not know
        raise RecipeError(f"timm: {error}", key="options") from error
    except Exception as error:  # nearly everything: assertions, errors of files, networks and formats
        words = " ".join(str(error).split()) or type(error).__name__
        place = f" in '{call['root']}'" if call.get("root") else ""
        raise DataError(f"timm cannot open the split '{call['split']}' of '{call['name']}'{place}: {words}") from error


def class_numbers(dataset: Any) -> Mapping[str, int] | None:
    """The numbers of the classes by name, if this data set of timm's or torchvision's knows them."""
    owner = getattr(dataset, "reader", dataset)
    numbers = getattr(owner, "class_to_idx", None) or getattr(owner, "class_name_to_idx", None)
    if isinstance(numbers, Mapping) and numbers and all(isinstance(name, str) for name in numbers):
        return numbers
    names = getattr(owner, "classes", None)
    return {str(name): number for number, name in enumerate(names)} if names else None


def label_of(target: Any, name: str) -> int | None:
    """A target as a class's number, None where there is none; RecipeError, naming the image, for something else."""
    if isinstance(target, str):  # as a table of texts has it
        with suppress(ValueError):
            target = int(target)
    try:
        return labels.label_of(target, None, name)
    except ContractError as error:
        raise RecipeError(f"{error}; name another with options.target_key, or set labels = false", key="options") from (
            error
        )


@attrs.define(eq=False)
class TimmImages:
    """A split over what timm or torchvision can look up; a broken image raises DataError, naming it."""

    dataset: Any
    source: str
    labelled: bool
    folder: str | None = None  # without which there are no images at all
    reading: Reading = attrs.field(factory=Reading)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        found, name, target = self._found(index)
        if isinstance(found, Image.Image):
            pixels = self.reading.of(found, name)
        else:
            with found:
                pixels = self.reading.read(found, name)
        return pixels.sample(label_of(target, name) if self.labelled else None)

    def stored(self, index: int) -> tuple[Any, str]:
        """An image as timm's reader has it, or its file, and its name."""
        return self._found(index)[:2]

    def _found(self, index: int) -> tuple[Any, str, Any]:
        reader = getattr(self.dataset, "reader", None)
        try:
            found, target = (self.dataset if reader is None else reader)[index][:2]
        except MaskZooError:
            raise
        except KeyError as error:
            raise RecipeError(
                f"'{self.source}' has no {error}; name what there is with options.input_key and options.target_key "
                "(any column for the latter, where labels = false)",
                key="options",
            ) from error
        except Exception as error:  # whatever files, archives and formats raise
            if self.folder is not None:
                check_still_there(self.folder)
            raise DataError(f"{self._named(index)} cannot be read ({error}); mend or remove it") from error
        return found, self._named(index), target

    def _named(self, index: int) -> str:
        """The image in words, by its file's name if there is one."""
        try:
            file = self.dataset.filename(index)
        except Exception:  # no names, or none that can be read
            file = None
        return f"image {index} of '{self.source}'" + (f" ('{file}')" if file else "")

    @property
    def files(self) -> Sequence[str]:
        """The names of the images, where they are known without reading them."""
        samples = getattr(getattr(self.dataset, "reader", None), "samples", None)
        return () if samples is None else self.dataset.filenames()

    @property
    def place(self) -> tuple[str, str] | None:
        """The folder or file of the images and the first of them; None for a data set that knows its splits itself."""
        owner = getattr(self.dataset, "reader", self.dataset)
        samples = getattr(owner, "samples", None)
        return None if samples is None or not len(samples) else (str(owner.root), str(samples[0][0]))

    @property
    def class_numbers(self) -> Mapping[str, int] | None:
        """The numbers of the classes by name, if they are known."""
        return class_numbers(self.dataset)


class TimmStream:
    """A stream over one of timm's readers that know no lookup.

    What a share gives, and in which order, hangs on the two numbers given to `read` alone, so a run is resumed exactly,
    with any number of workers and processes: by reading once more what was seen. Each share reads every `shares`-th
    shard (wds/ and hfids/; one image in `shares` of each where hfids/ has too few). Where that is less than an equal
    part of the images, timm begins the share anew. A broken image is left out by wds/, in timm's log, and ends the run
    with hfids/.
    """

    def __init__(self, call: Mapping[str, Any], labelled: bool, shares: int) -> None:
        self.name, self.labelled, self.reading = call["name"], labelled, Reading()
        mode = (
            "RGB" if self.name.lower().startswith("tfds/") else None
        )  # None: as stored, save there, where it is needed
        self.dataset = opened({**call, "is_training": True, "input_img_mode": mode})
        reader = self.dataset.reader
        if self.name.lower().startswith("wds/"):  # a list of files beside the shards has been read
            check_places(call["root"], [str(file) for file in reader.split_info.filenames])
        self.class_numbers = class_numbers(reader)
        self.images = int(reader.num_samples)
        shards = len(reader.split_info.filenames) if self.name.lower().startswith("wds/") else shares
        if shards < shares:
            raise RecipeError(
                f"{shares} shares cannot be made of the {shards} shards of '{self.name}'; at most {shards} would be "
                "right",
                key="shares",
            )
        self.shares = shares
        self._looked_up: tuple[int, Iterator[Sample]] = (0, iter(()))

    def __len__(self) -> int:
        return self.images

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_looked_up": (0, iter(()))}  # an open connection stays here

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.images:
            raise IndexError(index)
        place, samples = self._looked_up
        if index < place or place == 0:
            place, samples = 0, self._one_after_another()
        for sample in samples:
            place += 1
            if place > index:
                self._looked_up = place, samples
                return sample
        raise DataError(f"'{self.name}' ended after {place} images, but {self.images} were promised")

    def _one_after_another(self) -> Iterator[Sample]:
        for share in range(self.shares):
            yield from self.read(0, share)

    def read(self, order: int, share: int) -> Iterator[Sample]:
        """The images of a share, shuffled by what `order` says. Raises DataError where timm's reader fails."""
        # timm's readers, and the libraries below, would divide a share once more among the loader's workers.
        torch.utils.data._utils.worker._worker_info = None
        # A reader decides on its order when it begins to read. This one never does, so that each copy begins anew.
        dataset, reader = copy.copy(self.dataset), copy.copy(self.dataset.reader)
        dataset.reader = reader
        reader.common_seed = reader.worker_seed = order % 2**31
        reader.dist_rank, reader.dist_num_replicas = share, self.shares
        reader.set_loader_cfg(num_workers=1)
        done = 0
        try:
            for image, target in dataset:
                name = f"image {done} of share {share} of '{self.name}'"
                label = label_of(target, name) if self.labelled else None
                yield self.reading.of(image, name).sample(label)
                done += 1
        except MaskZooError:
            raise
        except Exception as error:  # whatever networks, archives and formats raise
            words = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"share {share} of '{self.name}' cannot be read on after {done} images: {words}") from error
