"""What a data set or a backbone has to tell about itself, printed once when a run begins and kept with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from maskzoo.data.labels import label_remarks
from maskzoo.errors import ContractError
from maskzoo.plain import printable
from maskzoo.protocols import Backbone, Dataset


def remarks_of(dataset: Dataset, backbone: Backbone | None = None) -> list[str]:
    """The messages in the attributes `remarks` of a data set and a backbone, if they have one: a line each, none twice.

    They say how the data were read, what was left out, and to what size images are brought; what their labels lack is
    added here. Raises ContractError where they are no texts.
    """
    told = [*_told(dataset), *label_remarks(dataset), *([] if backbone is None else _told(backbone))]
    lines = (printable(" ".join(one.split())) for one in told)
    return list(dict.fromkeys(line for line in lines if line))


def _told(made: Dataset | Backbone) -> Iterable[str]:
    told: object = getattr(made, "remarks", ())
    if isinstance(told, str) or not isinstance(told, Sequence) or not all(isinstance(one, str) for one in told):
        raise ContractError(f"'{made.name}': remarks must be a sequence of texts")
    return told
