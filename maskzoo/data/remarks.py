"""What a data set has to tell about itself, printed once when a run begins and kept with it."""

from __future__ import annotations

from collections.abc import Sequence

from maskzoo.data.labels import label_remarks
from maskzoo.errors import ContractError
from maskzoo.plain import printable
from maskzoo.protocols import Dataset


def remarks_of(dataset: Dataset) -> list[str]:
    """The messages in a data set's attribute `remarks`, which it may lack: each on one line, none twice.

    They say how the data were read and what was left out; what their labels lack is added here.
    Raises ContractError where they are no texts.
    """
    told = getattr(dataset, "remarks", ())
    if isinstance(told, str) or not isinstance(told, Sequence) or not all(isinstance(one, str) for one in told):
        raise ContractError(f"data set '{dataset.name}': remarks must be a sequence of texts")
    lines = (printable(" ".join(one.split())) for one in [*told, *label_remarks(dataset)])
    return list(dict.fromkeys(line for line in lines if line))
