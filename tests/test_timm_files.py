"""timm's own state dict of a model of every family, as a file, gives what timm's own loading of it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from maskzoo import Registry
from maskzoo.backbones import adapter
from maskzoo.build import adapter_of
from maskzoo.recipe import make
from maskzoo.weights import load_weights

REGISTRY = Registry()
VIT: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN: dict[str, Any] = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 6]}
HIERA: dict[str, Any] = {"embed_dim": 24, "num_heads": 1, "stages": [1, 1, 1, 1]}
RESNET: dict[str, Any] = {"layers": [1, 1, 1, 1]}
CONVNEXT: dict[str, Any] = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
FAMILIES: dict[str, tuple[dict[str, Any], int, bool, str]] = {  # options, pixels, whether built for them, what is told
    "beit_base_patch16_224": (VIT, 32, True, "head (2 tensors)"),
    "vit_base_patch16_siglip_224": (VIT, 32, True, "attn_pool (13 tensors)"),
    "eva02_tiny_patch14_224": (VIT, 28, True, ""),
    "vit_tiny_patch16_224": (VIT, 32, True, "head (2 tensors)"),
    "swin_tiny_patch4_window7_224": (SWIN, 64, True, "head (2 tensors)"),
    "convnextv2_atto": (CONVNEXT, 64, False, "head (4 tensors)"),
    "hiera_tiny_224": (HIERA, 64, True, "head (2 tensors)"),
    "resnet18": (RESNET, 64, False, "fc (2 tensors)"),
    "deit_tiny_distilled_patch16_224": (VIT, 32, True, "head (2 tensors), head_dist (2 tensors)"),
    "deit3_small_patch16_224": (VIT, 32, True, "head (2 tensors)"),
    "beitv2_base_patch16_224": (VIT, 32, True, "head (2 tensors)"),
    "eva_giant_patch14_224": (VIT, 28, True, "head (2 tensors)"),
    "vit_small_patch14_reg4_dinov2": (VIT, 28, True, ""),
    "vit_small_patch16_dinov3": (VIT, 32, True, ""),
    "vit_medium_patch16_reg4_gap_256": (VIT, 32, True, "head (2 tensors)"),
    "vit_base_patch16_clip_224": (VIT, 32, True, "head (2 tensors)"),
    "vit_base_patch16_rope_reg1_gap_256": (VIT, 32, True, "head (2 tensors)"),
    "vit_base_patch16_xp_224": (VIT, 32, True, "head (2 tensors)"),
    "vit_pe_core_tiny_patch16_384": (VIT, 32, True, "attn_pool (13 tensors), head (2 tensors)"),
    "vit_tiny_r_s16_p8_224": (VIT, 64, True, "head (2 tensors)"),
    "flexivit_small": (VIT, 32, True, "head (2 tensors)"),
    "swinv2_tiny_window8_256": (SWIN, 64, True, "head (2 tensors)"),
    "convnext_atto": (CONVNEXT, 64, False, "head (4 tensors)"),
    "resnet50": (RESNET, 64, False, "fc (2 tensors)"),
    "resnetv2_18": (RESNET, 64, False, "head (2 tensors)"),
    "regnety_002": ({}, 64, False, "head (2 tensors)"),
    "efficientnet_b0": ({}, 64, False, "classifier (2 tensors)"),
    "mobilenetv3_small_050": ({}, 64, False, "conv_head (2 tensors), classifier (2 tensors)"),
    "densenet121": ({}, 64, False, "classifier (2 tensors)"),
    "edgenext_xx_small": ({}, 64, False, "head (4 tensors)"),
    "repvgg_a0": ({}, 64, False, "head (2 tensors)"),
    "fastvit_t8": ({}, 64, False, "head (2 tensors)"),
}
FAST = 4  # of them: each kind of what is behind the last norm


def randomised(model: Any) -> dict[str, torch.Tensor]:
    """The state of a timm model of which nothing is zero or one any more."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(torch.rand(buffer.shape, generator=generator) * 0.1)
    return {name: value.clone().contiguous() for name, value in model.state_dict().items()}


def by_timm(use: dict[str, Any], file: Path, classes: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The adapter's backbone with `pretrained`, for which timm loads this file by its own code in place of fetching."""
    create = timm.create_model

    def local(*given: Any, pretrained: bool = False, **options: Any) -> Any:
        overlay = {"file": str(file), "custom_load": False, "hf_hub_id": None, "num_classes": classes}
        options |= {"pretrained_cfg_overlay": overlay} if pretrained else {}
        return create(*given, pretrained=pretrained, **options)

    with monkeypatch.context() as patched:
        patched.setattr(adapter.timm, "create_model", local)
        patched.setattr(adapter, "refuse_unreachable", lambda name: None)
        return make(REGISTRY, "backbone", {**use, "pretrained": True}, "backbone").eval()


@pytest.mark.filterwarnings("ignore")  # of timm's resizing of windows
@pytest.mark.parametrize(
    ("name", "ending"),
    [
        pytest.param(
            name,
            (".pth", ".safetensors")[number % 2],
            id=name,
            marks=[pytest.mark.slow] if number >= FAST else [],
        )
        for number, name in enumerate(FAMILIES)
    ],
)
def test_a_state_dict_of_timm_s_gives_the_features_of_pretrained(
    name: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options, size, built_for_it, told = FAMILIES[name]
    model = timm.create_model(name, **({"img_size": size} if built_for_it else {}), **options)
    state = randomised(model)
    save_file(state, tmp_path / "timm.safetensors")
    path = tmp_path / f"model{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    use = {"use": adapter_of(name, REGISTRY), "timm": name, "options": options, "image_size": size}
    expected = by_timm(use, tmp_path / "timm.safetensors", model.num_classes, monkeypatch)
    backbone = make(REGISTRY, "backbone", use, "backbone")
    lines = load_weights(backbone, path)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(backbone.eval()(images), expected(images))
    fresh = "mask_token" in backbone.state_dict()  # which timm's models do not have
    left = [line.removeprefix("weights: left out: ").split(", ") for line in lines if "left out" in line]
    assert [sorted(names) for names in left] == ([sorted(told.split(", "))] if told else [])
    assert ("weights: not in the file, and newly initialised: mask_token" in lines) == fresh
