"""Any timm network that ends in one feature map: zeroed pixels, or convolutions that see the visible alone.

Shapes: B images, N mask units (one position of the last map each), V visible, D channels, h x w positions of a map.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from timm.layers import (
    BlurPool2d,
    DropPath,
    EcaModule,
    GlobalResponseNormMlp,
    LayerNorm2d,
    Mlp,
    RmsNorm,
    RmsNorm2d,
    SEModule,
    SimpleNorm,
    SimpleNorm2d,
)
from timm.layers.grn import GlobalResponseNorm
from timm.models import convnext, resnet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskzoo.backbones import skeleton
from maskzoo.backbones.adapter import NOT_HERE, TimmBackbone
from maskzoo.backbones.vit import sin_cos
from maskzoo.errors import ContractError, RecipeError
from maskzoo.mask import Mask
from maskzoo.protocols import define
from maskzoo.registry import indefinite

# What a masked convolution knows how to do with each kind of module, inside the networks that it takes.
NETWORKS = (resnet.ResNet, convnext.ConvNeXt)
CONTAINERS = (
    *(resnet.BasicBlock, resnet.Bottleneck),
    *(convnext.ConvNeXtStage, convnext.ConvNeXtBlock, convnext.Downsample),
    *(nn.Sequential, Mlp, GlobalResponseNormMlp),
)
OVER_VISIBLE = (_BatchNorm, nn.GroupNorm, SEModule, EcaModule)  # they take means over the map
ZEROED = (
    *(nn.Conv2d, nn.Linear, nn.AvgPool2d, nn.MaxPool2d, BlurPool2d),
    *(nn.LayerNorm, LayerNorm2d, RmsNorm, RmsNorm2d, SimpleNorm, SimpleNorm2d),
    GlobalResponseNorm,  # it takes a sum of squares over the map, to which zeros add nothing
)
HEADS = {"fc", "global_pool", "head"}  # behind the feature map
ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")


@define
class CnnBackbone(TimmBackbone):
    """A timm network whose features are one map [B, D, h, w]: ConvNeXt, ResNet and many more.

    A mask unit is as large as a position of that map, most often 32 pixels. What lies behind the map, such as a norm
    after pooling, is built but not trained. What `hidden` means under a hard mask:

    - "zero-pixels": hidden pixels are zeroed, which is the mean colour, and all N positions come back.
    - "masked-convolution" (SparK, 2301.03580, and FCMAE, 2301.00808): what a sparse convolution computes. Every
      convolution, pooling and norm leaves exact zeros at hidden positions, maxima and the statistics of norms are
      taken over visible positions alone, and only those [B, V, D] come back. At its borders the visible part is
      treated like an image that ends there, except where timm pads by reflection (anti-aliasing) or averages over
      overlapping windows: hidden neighbours then count as zeros.

    Under a soft mask pixels are scaled by their unit's visibility, and all N positions come back.
    """

    name: ClassVar[str] = "cnn"
    dense: ClassVar[bool] = True

    timm: str = "resnet18"  # name of the timm model
    # what hidden means: pixels set to zero, or convolutions that see the visible alone
    hidden: Literal["zero-pixels", "masked-convolution"] = "zero-pixels"

    _position: ClassVar[Tensor]  # a buffer: positions for `tokens`, since the model itself adds none

    def __attrs_post_init__(self) -> None:
        usual = skeleton(self.timm)
        if not self.adapts(usual):
            raise RecipeError(
                f"'{self.timm}' is {indefinite(type(usual).__name__)}, whose features are not one map of a whole "
                "number of positions, which the backbone 'cnn' needs",
                key="timm",
            )
        self._refuse_no_image()
        self.model = self._create(NOT_HERE)
        model = copy.deepcopy(self.model).to("meta")
        unit = unit_of(model, self.channels)
        if unit is None:
            raise RecipeError(f"with these options '{self.timm}' does not end in one feature map", key="options")
        size = self._sized(unit)
        grid = size[0] // unit[0], size[1] // unit[1]
        features = feature_map(model, self.channels, size)
        if features is None or tuple(features.shape[2:]) != grid:
            raise RecipeError(
                f"'{self.timm}' cannot be shown images of {size[0]} x {size[1]} pixels; if it is built for one size, "
                "give that as image_size, and as img_size in options where timm wants it",
                key="image_size",
            )
        self.image_size, self.patch_size, self.grid = size, unit, grid
        self.dim = features.shape[1]
        self.token_dim = self._first_stage(model, torch.zeros(1, self.channels, *size, device="meta")).shape[1]
        self.register_buffer("_position", sin_cos(grid, self.token_dim, key="timm"), persistent=False)
        self._freeze_what_is_behind(model, features)
        self._visible = Visible(grid)
        if self.hidden == "masked-convolution":
            self.dense = False  # type: ignore[misc]
            self._mask_convolutions()

    @classmethod
    def adapts(cls, model: nn.Module) -> bool:
        """Whether this adapter is the one for such a timm model: tried out, without weights."""
        return hasattr(model, "forward_intermediates") and unit_of(model) is not None

    def forward(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        """The latent of images [B, C, H, W]: [B, V, D] under a hard mask of masked convolutions, else [B, N, D]."""
        self._check(images, mask)
        if mask is None:
            return self._encode(images)
        if mask.visibility is not None:
            pixels = mask.enlarge(self.grid, self.patch_size).visibility
            return self._encode(images * pixels.view(-1, 1, *images.shape[2:]))  # type: ignore[union-attr]
        images = self._without_hidden(images, mask)
        if self.dense:
            return self._encode(images)
        self._refuse_recomputing()
        with self._visible.under(mask):
            return mask.keep(self._encode(images))

    def tokens(self, images: Tensor) -> Tensor:
        """[B, N, token_dim]: the mean of the first stage's map over each unit, plus a fixed sin-cos position.

        The model is in evaluation mode meanwhile, so that no statistics move.
        """
        self._check(images)
        with _evaluating(self.model):
            first = self._first_stage(self.model, images)
        pooled = nn.functional.adaptive_avg_pool2d(first, self.grid)
        return pooled.flatten(2).transpose(1, 2) + self._position

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that timm would not decay."""
        names = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else ()
        return {f"model.{name}" for name, _ in self.model.named_parameters() if name in names}

    # ------------------------------------------------------------------------------------------------------- the parts
    def _encode(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(images)
        return features.flatten(2).transpose(1, 2)

    @staticmethod
    def _first_stage(model: Any, images: Tensor) -> Tensor:
        (first,) = model.forward_intermediates(
            images, indices=[0], stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return first  # type: ignore[no-any-return]

    def _refuse_recomputing(self) -> None:
        """Recomputed in the backward pass, when no mask is in force, the activations would be others."""
        if torch.is_grad_enabled() and any(
            "forward" in vars(module) or getattr(module, "grad_checkpointing", False) for module in self.model.modules()
        ):
            raise ContractError(
                f"'{self.timm}' cannot recompute activations of masked convolutions; set train.recompute to false, "
                "or the backbone's hidden to zero-pixels"
            )

    # -------------------------------------------------------------------------------------------------------- building
    def _freeze_what_is_behind(self, model: nn.Module, features: Tensor) -> None:
        """Exclude from training what has no part in the feature map, which neither DDP nor weight decay would leave."""
        weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        gradients = torch.autograd.grad(features.sum(), list(weights.values()), allow_unused=True)
        used = {name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None}
        for name, parameter in self.model.named_parameters():
            if name not in used:
                parameter.requires_grad_(False)

    def _mask_convolutions(self) -> None:
        if type(self.model) not in NETWORKS:
            raise RecipeError(
                f"masked convolutions are for timm's ResNet and ConvNeXt, and '{self.timm}' is a "
                f"{type(self.model).__name__}; use zero-pixels",
                key="hidden",
            )
        for name, child in self.model.named_children():
            if name not in HEADS:
                self._watch(child)

    def _watch(self, module: nn.Module, channels_last: bool = False) -> None:
        """Register what keeps a module's output zero at hidden positions, and its statistics clean of them."""
        if isinstance(module, OVER_VISIBLE):
            among = AmongVisible(self._visible, channels_last)
            module.register_forward_pre_hook(among.gather)
            module.register_forward_hook(among.scatter)
        elif isinstance(module, ZEROED):
            if isinstance(module, nn.MaxPool2d):
                module.register_forward_pre_hook(BelowAll(self._visible))
            module.register_forward_hook(Zeroed(self._visible, channels_last))
        elif isinstance(module, CONTAINERS):
            rows_last = isinstance(module, convnext.ConvNeXtBlock) and not module.use_conv_mlp
            for name, child in module.named_children():
                self._watch(child, channels_last or (rows_last and name in {"norm", "mlp"}))
        elif not _keeps_zero(module):
            raise RecipeError(
                f"'{self.timm}' has a {type(module).__name__}, of which no masked convolution is known; "
                "use zero-pixels",
                key="hidden",
            )


# ----------------------------------------------------------------------------------------------- convolutions, masked
class Visible:
    """Which positions of a map are visible, at whatever resolution, while a mask is in force."""

    def __init__(self, grid: tuple[int, int]) -> None:
        self.grid = grid
        self.mask: Mask | None = None
        self._hidden: dict[tuple[int, int], Tensor] = {}
        self._index: dict[tuple[int, int], Tensor] = {}

    @contextmanager
    def under(self, mask: Mask) -> Iterator[None]:
        """Put a hard mask in force. Raises ContractError for a mask whose count differs by image."""
        _ = mask.visible_index
        self.mask = mask
        try:
            yield
        finally:
            self.mask = None
            self._hidden.clear()
            self._index.clear()

    def hidden(self, height: int, width: int) -> Tensor:
        """[B, h, w] bool, True = hidden."""
        size = height, width
        if size not in self._hidden:
            assert self.mask is not None
            self._hidden[size] = self.mask.hidden_on(self.grid, self._factors(size)).view(-1, *size)
        return self._hidden[size]

    def index(self, height: int, width: int) -> Tensor:
        """[B, v]: the visible positions, counted along the rows, unit after unit."""
        size = height, width
        if size not in self._index:
            assert self.mask is not None
            units, (tall, wide) = self.mask.visible_index[..., None, None], self._factors(size)
            down = torch.arange(tall, device=units.device)[:, None]
            across = torch.arange(wide, device=units.device)
            rows, columns = units // self.grid[1] * tall + down, units % self.grid[1] * wide + across
            self._index[size] = (rows * width + columns).flatten(1)
        return self._index[size]

    def _factors(self, size: tuple[int, int]) -> tuple[int, int]:
        if size[0] % self.grid[0] or size[1] % self.grid[1]:
            raise ContractError(f"a map of {size[0]} x {size[1]} positions cannot be cut into {self.grid} mask units")
        return size[0] // self.grid[0], size[1] // self.grid[1]


class Zeroed:
    """A forward hook: exact zeros at hidden positions of a module's output."""

    filler = 0.0

    def __init__(self, visible: Visible, channels_last: bool = False) -> None:
        self.visible, self.channels_last = visible, channels_last

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The output [B, D, h, w], or [B, h, w, D], with its hidden positions filled."""
        return output if self.visible.mask is None else self._filled(output)

    def _filled(self, features: Tensor) -> Tensor:
        size = features.shape[1:3] if self.channels_last else features.shape[2:4]
        return torch.where(self.visible.hidden(*size).unsqueeze(-1 if self.channels_last else 1), self.filler, features)


class BelowAll(Zeroed):
    """A forward pre-hook: no hidden position is the greatest."""

    filler = -math.inf

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any = None) -> Any:
        """The inputs, filled."""
        return None if self.visible.mask is None else (self._filled(inputs[0]),)


class AmongVisible:
    """Two hooks that let a module see the visible positions alone, [B, D, v, 1], and put back what it makes of them."""

    def __init__(self, visible: Visible, channels_last: bool) -> None:
        self.visible, self.channels_last = visible, channels_last
        self.size = (0, 0)

    def gather(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """The visible positions of a map [B, D, h, w] as [B, D, v, 1]; channels last: [B, v, 1, D]."""
        if self.visible.mask is None:
            return None
        (features,) = inputs
        height, width = features.shape[1:3] if self.channels_last else features.shape[2:4]
        self.size = height, width
        rows = features.flatten(1, 2) if self.channels_last else features.flatten(2)
        kept = rows.gather(self._dimension, self._index(rows))
        return kept.unsqueeze(-2 if self.channels_last else -1)

    def scatter(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Back at their places in the map, among zeros."""
        if self.visible.mask is None:
            return None
        kept = output.squeeze(-2 if self.channels_last else -1)
        shape = list(kept.shape)
        shape[self._dimension] = math.prod(self.size)
        whole = kept.new_zeros(shape).scatter(self._dimension, self._index(kept), kept)
        return whole.view(*shape[: self._dimension], *self.size, *shape[self._dimension + 1 :])

    @property
    def _dimension(self) -> int:
        return 1 if self.channels_last else 2

    def _index(self, rows: Tensor) -> Tensor:
        index = self.visible.index(*self.size)
        if self.channels_last:
            return index[:, :, None].expand(-1, -1, rows.shape[2])
        return index[:, None].expand(-1, rows.shape[1], -1)


def _keeps_zero(module: nn.Module) -> bool:
    if isinstance(module, nn.Identity | nn.Dropout | DropPath):
        return True
    if not type(module).__module__.startswith(ACTIVATIONS):
        return False
    with torch.no_grad():
        return bool((module(torch.zeros(1, 1, 1, 1)) == 0).all())


# --------------------------------------------------------------------------------------------------- looking at models
def feature_map(model: Any, channels: int, size: tuple[int, int]) -> Tensor | None:
    """[1, D, h, w]: what a model without weights makes of an image, with its graph; None if that is no such map."""
    with _evaluating(model):
        try:
            features = model.forward_features(torch.zeros(1, channels, *size, device="meta"))
        except Exception:  # whatever a model of another kind does at such a size
            return None
    a_map = isinstance(features, Tensor) and features.ndim == 4 and features.shape[1] == model.num_features
    return features if a_map else None


def unit_of(model: Any, channels: int = 3) -> tuple[int, int] | None:
    """Pixels of a position of the last map of a model without weights; None if it does not end in a map, or if the
    map does not cut an image evenly.
    """
    usual = tuple(model.pretrained_cfg.get("input_size", (3, 224, 224))[1:])
    stages = getattr(model, "feature_info", None)
    stride = stages[-1].get("reduction") if isinstance(stages, list) and stages else None
    for size in dict.fromkeys([usual, (256, 256)]):
        features = feature_map(model, channels, size)
        if features is None or size[0] % features.shape[2] or size[1] % features.shape[3]:
            continue
        unit = size[0] // features.shape[2], size[1] // features.shape[3]
        if stride is None or unit == (stride, stride):  # else it was rounded, as 3.5 positions are to 4
            return unit
    return None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Have all modules in evaluation mode, and back as they were."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
