"""What all adapters share: a timm model, built for images of one size that are cut into mask units.

Shapes: B images, N mask units, C channels of an image, H height, W width.
"""

from __future__ import annotations

import functools
import math
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import attrs
import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import Tensor, nn

from maskzoo.backbones import skeleton
from maskzoo.backbones.sizes import (
    MOST_PIXELS,
    automatic_size,
    price,
    refuse_many,
    refuse_no_size,
    refuse_uncut,
)
from maskzoo.bounds import MOST_BLOCKS, MOST_PATCHES, MOST_SIDE, MOST_WIDTH, between
from maskzoo.errors import ContractError, RecipeError
from maskzoo.mask import Mask
from maskzoo.plain import quoted
from maskzoo.protocols import Need, define

REACHED_IN = 5.0  # seconds
_FETCHING: ContextVar[bool] = ContextVar("fetching", default=True)  # whether pretrained weights are to be fetched
WEIGHTS = "weights come from `pretrained` of the backbone, or from recipe.weights"
NOT_HERE = {  # options of timm's create_model that would get in the way, or read, fetch and write what nobody asked for
    "patch_drop_rate": "what is hidden is the mask's business",
    **dict.fromkeys(("checkpoint_path", "weights_only", "state_dict", "custom_load", "file", "url"), WEIGHTS),
    **dict.fromkeys(("hf_hub_id", "hf_hub_filename", "source", "cache_dir"), WEIGHTS),
    **dict.fromkeys(("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"), WEIGHTS),
    **dict.fromkeys(("pretrained_filter_fn", "pretrained_model_args"), WEIGHTS),
    "model_name": "the model's name is `timm`",
    "in_chans": "the number of channels is `channels`",
    "num_classes": "classifiers belong to objectives and evaluators",
    "drop_path_rate": "it is `drop_path`",
    "device": "it is recipe.train.device",
    "dtype": "it is recipe.train.precision",
    **dict.fromkeys(("features_only", "feature_cfg", "feature_cls", "out_indices"), "an encoder is used whole"),
    **dict.fromkeys(("scriptable", "exportable", "no_jit", "model_cfg", "kwargs_filter"), "it changes no training"),
}


@define
class TimmBackbone(nn.Module):
    """Subclass this for another family of timm models: set `model` and the sizes, write `adapts` and `forward`."""

    name: ClassVar[str]
    provides: ClassVar[frozenset[Need]] = frozenset({"features"})
    dense: ClassVar[bool] = True
    stage_dims: ClassVar[tuple[int, ...]] = ()

    timm: str  # name of the timm model
    # pixels a side; None: the data's, brought to whole mask units, to at least four a side, and not to too many
    image_size: int | tuple[int, int] | None = None
    # of the images; a run takes it from its data
    channels: int = attrs.field(default=3, validator=attrs.validators.le(MOST_WIDTH))
    data_size: tuple[int, int] = (224, 224)  # height and width of the data's images; a run takes it from its data
    # highest rate of stochastic depth, in the last block
    drop_path: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0.0), attrs.validators.lt(1.0)])
    pretrained: bool = False  # timm's weights, downloaded
    options: Mapping[str, Any] = attrs.field(factory=dict)  # anything else for timm.create_model
    # patches (mask units) of an image that are meant, where they are more than 4,096
    most_patches: int | None = attrs.field(default=None, validator=attrs.validators.optional(between(1, MOST_PATCHES)))

    def __attrs_pre_init__(self) -> None:
        super().__init__()
        self.model: Any = None  # the timm model
        self.grid: tuple[int, int] = (0, 0)
        self.dim = self.token_dim = self.prefix = 0
        self.remarks: list[str] = []  # what there is to tell of the size that was chosen

    @classmethod
    def adapts(cls, model: nn.Module) -> bool:
        """Whether this adapter is the one for such a timm model."""
        raise NotImplementedError

    def stages(self, images: Tensor, mask: Mask | None = None) -> list[Tensor]:
        """What each stage makes of each unit, for decoders that see several; nothing where `stage_dims` is empty."""
        return []

    def no_weight_decay(self) -> set[str]:
        """Vectors alone, as MAE has it."""
        return set()

    def inspect(self, images: Tensor, block: int = -1) -> tuple[Tensor, Tensor | None]:
        """The features of whole images [B, P + N, D], and no attention; only the last block can be asked for."""
        if block != -1:
            raise ContractError(f"'{self.timm}' shows its last features alone, not those of block {block}")
        features: Tensor = self(images)
        return features, None

    def attention(self, images: Tensor) -> Tensor:
        """Raises ContractError: there is no attention from one place to every unit."""
        raise ContractError(f"'{self.timm}' has no attention that can be read")

    # -------------------------------------------------------------------------------------------------------- building
    def _sized(self, unit: tuple[int, int], most: int | None = None) -> tuple[int, int]:
        """The size of the images, in whole units: as asked for, or the data's, brought to `most` of them at most."""
        self._refuse_no_image()
        if max(unit) > MOST_SIDE:
            raise RecipeError(f"must be at most {MOST_SIDE} pixels a side, got {quoted(max(unit))}", key="patch_size")
        if self.image_size is None:
            choice = automatic_size(self.data_size, unit, most or MOST_PIXELS // math.prod(unit))
            self.remarks = [choice.told] if choice.told else []
            return choice.size
        size = pair(self.image_size)
        refuse_uncut(size, unit)
        units = math.prod(side // step for side, step in zip(size, unit, strict=True))
        refuse_many(size, unit, self.most_patches, price(skeleton(self.timm), self.options, size, units))
        return size

    def _refuse_no_image(self) -> None:
        """Raise RecipeError for channels or a size that no unit would make right."""
        if self.channels < 1:
            raise RecipeError(f"an image has at least one channel, got {self.channels}", key="channels")
        if self.image_size is not None:
            refuse_no_size(pair(self.image_size))

    def _create(self, refused: Mapping[str, str] = NOT_HERE, **arguments: Any) -> Any:
        """The timm model, without a classifier; what timm finds wrong is said as an error of `options`."""
        for name in self.options:
            instead = refused.get(name, WEIGHTS if name.startswith("pretrained") else "")
            if name in arguments:
                instead = instead or "it follows from the backbone's other keys"
            if instead:
                raise RecipeError(f"{name} cannot be given here; {instead}", key="options")
        refuse_large(self.options)
        if self.pretrained and _FETCHING.get():
            refuse_unreachable(self.timm)
        arguments = {**arguments, **self.options}
        create = functools.partial(
            timm.create_model,
            self.timm,
            pretrained=self.pretrained and _FETCHING.get(),
            in_chans=self.channels,
            num_classes=0,
            **arguments,
        )
        try:
            try:
                return create(drop_path_rate=self.drop_path)
            except TypeError as problem:
                if "drop_path_rate" not in str(problem) or self.drop_path > 0:
                    raise
                return create()  # some know no drop path
        except Exception as problem:  # models check their options in as many ways as there are models
            told = ", ".join(f"{name} {_brief(value)}" for name, value in arguments.items() if value != "")
            reason = str(problem) or type(problem).__name__
            if isinstance(problem, LookupError | ArithmeticError):  # whose words alone say nothing
                reason = f"{type(problem).__name__}: {problem}"
            raise RecipeError(f"timm cannot build '{self.timm}' with {told}: {reason}", key="options") from None

    # -------------------------------------------------------------------------------------------------------- checking
    def _check(self, images: Tensor, mask: Mask | None = None) -> None:
        """Raise ContractError for images or a mask of another shape than this backbone was built for."""
        expected = (self.channels, *pair(self.image_size))  # type: ignore[arg-type]
        if tuple(images.shape[1:]) != expected:
            raise ContractError(f"'{self.timm}' was built for images {list(expected)}, got {list(images.shape[1:])}")
        if mask is not None and mask.hidden.shape != (images.shape[0], math.prod(self.grid)):
            expected_mask = [images.shape[0], math.prod(self.grid)]
            raise ContractError(f"the mask is {list(mask.hidden.shape)}, but these images have patches {expected_mask}")

    def _without_hidden(self, images: Tensor, mask: Mask) -> Tensor:
        """The images with the hidden units' pixels zeroed, so that neither values nor gradients can carry them."""
        size = images.shape[2:]
        pixels = mask.hidden_on(self.grid, [side // units for side, units in zip(size, self.grid, strict=True)])
        return torch.where(pixels.view(-1, 1, *size), 0.0, images)


def _brief(value: Any) -> str:
    return str(value) if isinstance(value, int | float | tuple) else quoted(value).strip("'")


@contextmanager
def without_fetching() -> Iterator[None]:
    """Build pretrained backbones inside as they are, but with other weights, since theirs are about to be loaded."""
    token = _FETCHING.set(False)
    try:
        yield
    finally:
        _FETCHING.reset(token)


def refuse_large(options: Mapping[str, Any]) -> None:
    """Raise RecipeError for options of timm by which a network would be built until the memory ends."""
    for name, value in options.items():
        found = [abs(number) for number in _numbers(value)]
        deep = any(part in name for part in ("depth", "layers", "blocks", "repeat"))
        if deep and sum(found) > MOST_BLOCKS:
            raise RecipeError(f"{name} makes more than {MOST_BLOCKS} blocks, got {quoted(value)}", key="options")
        if max(found, default=0) > 16 * MOST_WIDTH:
            raise RecipeError(f"{name} is more than {16 * MOST_WIDTH:,}, got {quoted(value)}", key="options")


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers in an option, at any depth."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(item)


def refuse_unreachable(name: str) -> None:
    """Raise RecipeError at once where weights are neither here nor can be fetched; libraries try for a minute."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id or urllib.request.getproxies() or constants.HF_HUB_OFFLINE:
        return
    files = (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
    if any(file and isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files):
        return
    place = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((place.hostname or "", place.port or 443), timeout=REACHED_IN).close()
    except OSError as problem:
        raise RecipeError(
            f"the weights of '{name}' are not on this machine, and {place.hostname} cannot be reached ({problem}); "
            "fetch them once where it can, or begin without",
            key="pretrained",
        ) from problem


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """A size along both dimensions."""
    return (size, size) if isinstance(size, int) else size


def by_unit(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map [B, h, w, D] as the tokens of each unit of a grid [B, N, h / rows * w / columns, D]."""
    batch, height, width, dim = features.shape
    rows, columns = grid
    cut = features.reshape(batch, rows, height // rows, columns, width // columns, dim)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1, dim)
