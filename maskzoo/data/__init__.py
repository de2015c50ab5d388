"""Where images come from: one file a source, and the way from a data set to batches."""

from __future__ import annotations

from maskzoo.hookspecs import hookimpl


@hookimpl
def maskzoo_datasets() -> list[type]:
    """The data sets that come with MaskZoo."""
    from maskzoo.data.cifar10 import Cifar10
    from maskzoo.data.digits import Digits
    from maskzoo.data.fashion_mnist import FashionMnist
    from maskzoo.data.folder import Folder
    from maskzoo.data.hugging_face import HuggingFace
    from maskzoo.data.shards import Shards
    from maskzoo.data.through_timm import ThroughTimm

    return [Digits, FashionMnist, Cifar10, Folder, Shards, HuggingFace, ThroughTimm]
