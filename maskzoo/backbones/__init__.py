"""Backbones: thin adapters that let a timm model be shown part of an image."""

from __future__ import annotations

from maskzoo.hookspecs import hookimpl


@hookimpl
def maskzoo_backbones() -> list[type]:
    """The adapters that come with MaskZoo."""
    from maskzoo.backbones.vit import VitBackbone

    return [VitBackbone]
