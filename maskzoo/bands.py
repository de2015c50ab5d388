"""Which channels of an image are shown as red, green and blue, and how that is said; channels are counted from 1."""

from __future__ import annotations

from collections.abc import Sequence


def shown_channels(channels: int) -> tuple[int, ...]:
    """The one of grey images, both of two, the first three of up to four, of more the first, middle and last."""
    if channels <= 4:
        return tuple(range(1, min(channels, 3) + 1))
    return 1, (channels + 1) // 2, channels


def told_channels(shown: Sequence[int], channels: int) -> str:
    """What a reader of a picture has to know of its colours; nothing of grey, RGB and RGBA."""
    if len(shown) == 2:
        return f"channel {shown[0]} is shown as red, {shown[1]} as blue, and their mean as green"
    if len(shown) == 1 or (tuple(shown) == (1, 2, 3) and channels <= 4):
        return ""
    first, second, third = shown
    return f"channels {first}, {second} and {third} of {channels} are shown as red, green and blue"


def wrong_channels(shown: Sequence[int], channels: int) -> str:
    """What is wrong with channels that are to be shown; nothing where these are one to three of all."""
    if len(shown) in (1, 2, 3) and all(isinstance(one, int) and 1 <= one <= channels for one in shown):
        return ""
    return f"must be one to three of the channels 1 to {channels}, got {list(shown)}"
