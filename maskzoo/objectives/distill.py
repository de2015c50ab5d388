"""Foretell the teacher's features of hidden patches from the visible ones.

Shapes: B images, N patches, V visible, P prefix tokens, D channels of the encoder, E channels of the decoder.
"""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, smooth_l1_loss

from maskzoo.errors import ContractError
from maskzoo.mask import Mask
from maskzoo.objectives.decoder import DecodingObjective
from maskzoo.protocols import Backbone, Need, Objective, Outcome, define


@define
class Distill(DecodingObjective):
    """Foretell what the teacher, an average of the model, makes of hidden patches when it sees the whole image.

    Target and loss are those of I-JEPA (arXiv 2301.08243), under masks of any strategy; labels are not looked at.
    """

    name: ClassVar[str] = "distill"
    paper: ClassVar[str] = (
        "Assran et al., Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture, "
        "arXiv 2301.08243, CVPR 2023"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})

    beta: float = attrs.field(  # below which difference the loss is quadratic: I-JEPA's; data2vec has 2 for images
        default=1.0, validator=attrs.validators.gt(0)
    )

    def setup(self, backbone: Backbone) -> None:
        """Take the backbone and build the decoder."""
        self.backbone = backbone  # type: ignore[misc]
        self._build_decoder(backbone, backbone.dim)

    def forward(
        self, images: Tensor, mask: Mask, labels: Tensor | None = None, teacher: Objective | None = None
    ) -> Outcome:
        """Encode what is visible, foretell the features of all patches, and score them by the mask's weights.

        `prediction` is [B, N, D]. The figure `target_spread` is how much the target differs from image to image; it
        falls to 0 when the model collapses. Raises ContractError without a teacher.
        """
        if teacher is None:
            raise ContractError(f"objective '{self.name}' learns from a teacher, and there is none")
        latent = self.backbone(images, mask)
        decoder_input, prediction = self._decode(latent, mask)
        target = self.targets(images, teacher)
        patch_loss = smooth_l1_loss(prediction, target, beta=self.beta, reduction="none").mean(dim=2)  # [B, N]
        return Outcome(
            loss=mask.mean(patch_loss),
            latent=latent,
            patch_loss=patch_loss,
            decoder_input=decoder_input,
            prediction=prediction,
            metrics={"target_spread": target.std(dim=0, correction=0).mean()},
        )

    @torch.no_grad()
    def targets(self, images: Tensor, teacher: Objective) -> Tensor:
        """[B, N, D] float32: the teacher's features of whole images, each patch's normalised over its channels."""
        features = teacher.backbone(images)[:, self.backbone.prefix :].float()
        return layer_norm(features, features.shape[2:])

    def picture(self, images: Tensor, mask: Mask) -> None:
        """Features make no picture."""
        return
