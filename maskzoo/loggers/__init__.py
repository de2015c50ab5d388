"""Where figures and pictures go besides the run's folder: one file a kind of logger, none used unless asked for."""

from __future__ import annotations

from maskzoo.hookspecs import hookimpl


@hookimpl
def maskzoo_loggers() -> list[type]:
    """The loggers that come with MaskZoo; their libraries are imported when one is made."""
    from maskzoo.loggers.tensorboard import TensorBoard
    from maskzoo.loggers.tracking import Trackio, WandB

    return [TensorBoard, WandB, Trackio]
