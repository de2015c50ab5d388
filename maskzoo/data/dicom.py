"""Images of DICOM, by pydicom."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from maskzoo.data.stored import Stored, reader, refuse_absurd
from maskzoo.errors import DataError

COLOURED = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "YBR_PARTIAL_420")


def dicom(file: IO[bytes], name: str) -> Stored:
    """The image of a DICOM file: its stored values, rescaled where it says how; no window is applied.

    White-is-zero (MONOCHROME1) is told, as are the bits in use and the pixels that are padding. Several frames are
    refused.
    """
    pydicom = reader("pydicom", name, "a DICOM file")
    head = pydicom.dcmread(file)
    frames = int(head.get("NumberOfFrames") or 1)
    if frames > 1:
        raise DataError(f"{name} has {frames} frames; store each as a file of its own, or as bands of a TIFF")
    if "PixelData" not in head and "FloatPixelData" not in head and "DoubleFloatPixelData" not in head:
        raise DataError(f"{name} is DICOM without an image; remove it")
    colours = "RGB" if head.PhotometricInterpretation in COLOURED else ""
    slope, intercept = float(head.get("RescaleSlope") or 1), float(head.get("RescaleIntercept") or 0)
    rescaled = not colours and ((slope, intercept) != (1, 0) or "ModalityLUTSequence" in head)
    kind = "float32" if rescaled else _kind_of(head)
    bands = 3 if colours else 1
    refuse_absurd((int(head.Rows), int(head.Columns), bands), kind, name)

    def values() -> NDArray[Any]:
        found: NDArray[Any] = head.pixel_array
        if head.PhotometricInterpretation == "PALETTE COLOR":
            found = pydicom.pixels.apply_color_lut(found, head)
            found = (found >> 8).astype(np.uint8) if found.dtype == np.uint16 else found
        if rescaled:
            found = pydicom.pixels.apply_modality_lut(found, head)
        return found.astype(kind, copy=False).reshape(int(head.Rows), int(head.Columns), bands)

    padding = head.get("PixelPaddingValue")

    def measured() -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = head.pixel_array != padding
        return found

    used = int(head.get("BitsStored", 0))
    return Stored(
        int(head.Rows),
        int(head.Columns),
        bands,
        kind,
        values,
        colours,
        bits=used if kind.startswith("uint") and 0 < used < np.dtype(kind).itemsize * 8 else None,
        inverted=head.PhotometricInterpretation == "MONOCHROME1",
        mask=measured if padding is not None and not colours else None,
    )


def _kind_of(head: Any) -> str:
    """What numbers the pixels are."""
    if "FloatPixelData" in head:
        return "float32"
    if "DoubleFloatPixelData" in head:
        return "float64"
    if head.PhotometricInterpretation == "PALETTE COLOR":
        return "uint8"
    bits = 8 if int(head.BitsAllocated) <= 8 else 16 if int(head.BitsAllocated) <= 16 else 32
    return ("int" if int(head.get("PixelRepresentation") or 0) else "uint") + str(bits)
