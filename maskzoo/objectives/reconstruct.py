"""Rebuild hidden patches from the visible ones: pixels (MAE, arXiv 2111.06377; SimMIM, arXiv 2111.09886) or gradients.

Shapes: B images, N patches, V visible, P prefix tokens, D channels of the encoder, E channels of the decoder, T values
of a target.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from maskzoo.errors import RecipeError
from maskzoo.mask import Mask
from maskzoo.objectives.decoder import DecodingObjective, initialise
from maskzoo.objectives.hog import features, hog, known_cells
from maskzoo.protocols import Backbone, Objective, Outcome, define


@define
class Reconstruct(DecodingObjective):
    """Rebuild hidden patches with a small transformer decoder, as MAE does, or a linear map, as SimMIM does."""

    name: ClassVar[str] = "reconstruct"
    paper: ClassVar[str] = "He et al., Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377, CVPR 2022"

    decoder: Literal["transformer", "linear"] = "transformer"  # "linear": of each patch's own latent; no decoder_*
    loss: Literal["mse", "l1"] = "mse"  # squared or absolute difference to the target
    target: Literal["norm_pixels", "pixels", "hog"] = "norm_pixels"  # the first: by each patch's own mean and variance
    fusion: bool = True  # where the encoder has several stages, rebuild from their sum, as Hiera's MAE (2306.00989)

    def setup(self, backbone: Backbone) -> None:
        """Take the backbone and build the decoder; the names of its parameters are those of published MAE weights."""
        self.backbone = backbone  # type: ignore[misc]
        pixels = backbone.channels * math.prod(backbone.patch_size)
        if self.target == "norm_pixels" and pixels == 1:
            raise RecipeError("a patch of a single value has no contrast to normalise by; use 'pixels'", key="target")
        values = features(backbone.channels, backbone.patch_size) if self.target == "hog" else pixels
        if self.decoder == "transformer":
            self._build_decoder(backbone, values)
        elif backbone.dense:
            self.decoder_pred = nn.Linear(backbone.dim, values)
            initialise(self.decoder_pred)
        else:
            raise RecipeError(
                f"a linear one rebuilds each patch from its own latent, and the backbone '{backbone.name}' drops "
                "hidden patches; use 'transformer', or an encoder that keeps them, such as a Swin, or a ViT with "
                "backbone.mask_token = true",
                key="decoder",
            )
        if self.fusion and backbone.stage_dims:
            self.fusion_maps = nn.ModuleList(nn.Linear(width, backbone.dim) for width in backbone.stage_dims)
            self.fusion_norm = nn.LayerNorm(backbone.dim, eps=1e-6)
            self.fusion_maps.apply(initialise)

    def forward(
        self, images: Tensor, mask: Mask, labels: Tensor | None = None, teacher: Objective | None = None
    ) -> Outcome:
        """Encode what is visible, rebuild all patches, and score them by the mask's weights.

        `prediction` is [B, N, T]: of pixels, in the order row, column, channel. Under a soft mask all N patches come
        from the encoder, and no mask token is used. Pixels that were not measured (`mask.valid`) count nowhere.
        """
        latent = self._encode(images, mask)
        if self.decoder == "linear":
            decoder_input = latent
            prediction = self.decoder_pred(latent[:, self.backbone.prefix :]).float()
        else:
            decoder_input, prediction = self._decode(latent, mask)
        target = self.targets(images) if mask.valid is None else self.targets(images, mask.valid)
        difference = prediction - target
        difference = difference.abs() if self.loss == "l1" else difference.square()  # [B, N, T]
        if mask.valid is None:
            patch_loss = difference.mean(dim=2)
        else:
            known = self._known(mask.valid)
            patch_loss = mean_of(difference, known)[..., 0]
            mask = mask.weighing(known.any(dim=2))
        return Outcome(
            loss=mask.mean(patch_loss),
            latent=latent,
            patch_loss=patch_loss,
            decoder_input=decoder_input,
            prediction=prediction,
        )

    def targets(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """[B, N, T] float32: what the prediction is compared with; of the `valid` pixels [B, C, H, W] bool alone."""
        if self.target == "hog":
            return hog(images, self.backbone.patch_size, valid)
        patches = patchify(images.float(), self.backbone.patch_size)
        if self.target == "pixels":
            return patches
        mean, deviation = _moments(patches, None if valid is None else self._known(valid))
        return (patches - mean) / deviation

    def _known(self, valid: Tensor) -> Tensor:
        """[B, N, T] bool: which values of the target are made of `valid` pixels [B, C, H, W]."""
        patch = self.backbone.patch_size
        return known_cells(valid, patch) if self.target == "hog" else patchify(valid, patch)

    def picture(self, images: Tensor, mask: Mask) -> tuple[Tensor, str] | None:
        """[B, C, H, W]: the images with their hidden patches rebuilt, and a word of warning if there is need of one.

        None where gradients are rebuilt, which make no picture.
        """
        if self.target == "hog":
            return None
        prediction = self(images, mask).prediction
        patches = patchify(images.float(), self.backbone.patch_size)
        note = ""
        if self.target == "norm_pixels":
            mean, deviation = _moments(patches, None if mask.valid is None else self._known(mask.valid))
            prediction = prediction * deviation + mean
            note = "rebuilt patches borrow their true mean and contrast, which the model does not predict (norm_pixels)"
        rebuilt = unpatchify(mask.cover(patches, prediction), self.backbone.grid, self.backbone.patch_size)
        return rebuilt, note

    def _encode(self, images: Tensor, mask: Mask) -> Tensor:
        """The latent [B, P + V or N, D]: the encoder's own, or the normalised sum of what its stages say."""
        if not (self.fusion and self.backbone.stage_dims):
            return self.backbone(images, mask)
        stages = zip(self.fusion_maps, self.backbone.stages(images, mask), strict=True)
        mapped = [layer(stage) for layer, stage in stages]
        return self.fusion_norm(torch.stack(mapped).sum(dim=0))  # type: ignore[no-any-return]


def patchify(images: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Images [B, C, H, W] as patches [B, N, h * w * C], pixels in the order row, column, channel."""
    height, width = patch
    batch, channels, rows, columns = images.shape
    cut = images.reshape(batch, channels, rows // height, height, columns // width, width)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, height * width * channels)


def unpatchify(patches: Tensor, grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """The inverse of `patchify`: patches [B, N, h * w * C] on a grid as images [B, C, H, W]."""
    (rows, columns), (height, width) = grid, patch
    cut = patches.reshape(patches.shape[0], rows, columns, height, width, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], -1, rows * height, columns * width)


def mean_of(values: Tensor, known: Tensor) -> Tensor:
    """[B, N, 1]: the mean of those `values` [B, N, T] of each patch that are `known` (bool); 0 where none is.

    Where all are it is their plain mean, to the bit.
    """
    share = values.shape[2] / known.sum(dim=2, keepdim=True).clamp(min=1)  # 1.0 where all are
    return torch.where(known, values, 0.0).mean(dim=2, keepdim=True) * share


def _moments(patches: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, [B, N, 1] each, as MAE takes them (unbiased, plus 1e-6).

    Of the values that are `known`, bool [B, N, T], where that is given.
    """
    mean, variance = patches.mean(dim=2, keepdim=True), patches.var(dim=2, keepdim=True)
    if known is not None:
        count = known.sum(dim=2, keepdim=True)
        some = mean_of(patches, known)
        apart = mean_of((patches - some).square(), known) * (count / (count - 1).clamp(min=1))
        whole = count == patches.shape[2]
        mean, variance = torch.where(whole, mean, some), torch.where(whole, variance, apart)
    return mean, (variance + 1e-6).sqrt()
