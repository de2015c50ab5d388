"""How much memory a computation takes: of the GPU's allocator, or else of this process as a whole."""

from __future__ import annotations

import ctypes
import platform
import resource
from contextlib import suppress
from pathlib import Path

import torch

RESET_PEAK = "5"  # to /proc/self/clear_refs: the peak begins again at what is held now (man 5 proc)


class PeakMemory:
    """The most memory that has been held at once since this was made.

    On a GPU that of torch's allocator; elsewhere the resident memory of this process, libraries and data included,
    where Linux can tell it from what was held before.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.known = True  # whether the peak is that of this time, and of none before
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self.known = forget_peak()

    @property
    def bytes(self) -> int | None:
        """Bytes at the worst moment so far; None where it cannot be told from what was before."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return resident(peak=True) if self.known else None


def forget_peak() -> bool:
    """Give back what the C library holds in reserve, and let the process's peak begin anew, if Linux allows it."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    except OSError:  # another system, or a container that keeps this to itself
        return False
    return _status("VmHWM") is not None


def resident(*, peak: bool) -> int:
    """Resident bytes of this process: now, or at the most.

    Linux hands a parent's ru_maxrss down to a child, so it is asked only where there is nothing else.
    """
    found = _status("VmHWM" if peak else "VmRSS")
    if found is not None:
        return found
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024


def _status(name: str) -> int | None:
    """Bytes that Linux tells of this process under that name; None where it does not."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)
