"""What depends on the size of images, patches and windows, brought from the size of the trained weights to another.

Shapes: N patches of a grid, P prefix tokens, D channels.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def resized(
    backbone: Any,
    state: Mapping[str, Tensor],
    path: Path,
    key: str,
    *,
    grid: tuple[int, int] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """The state with all that depends on sizes brought to the backbone's, as timm does it; what was done, as messages.

    `state` is by the backbone's names ("model.pos_embed"), or by those that timm's own loader of the family renames.
    Where its positions come from: `recipe`, the options of the backbone that a run has trained (its key `backbone`),
    else `grid`, rows and columns as the user says. `key` and `path` are where the state is from, for messages.
    Raises RecipeError for what cannot fit.
    """
    inner = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    fixed = {name for name, parameter in backbone.model.named_parameters() if not parameter.requires_grad}
    inner = {name: value for name, value in inner.items() if name not in fixed}
    fitted = getattr(sys.modules[type(backbone.model).__module__], "checkpoint_filter_fn", None)
    if fitted is not None:
        inner = fitted(inner, backbone.model)
    return {
        **{name: value for name, value in state.items() if not name.startswith("model.")},
        **{f"model.{name}": value for name, value in inner.items()},
    }, []
