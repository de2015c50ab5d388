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
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            forget_peak()

    @property
    def bytes(self) -> int:
        """Bytes at the worst moment so far."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return resident(peak=True)


def forget_peak() -> None:
    """Give back what the C library holds in reserve, and let the process's peak begin anew, where Linux allows it."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # another system, or a container that keeps this to itself
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)


def resident(*, peak: bool) -> int:
    """Resident bytes of this process: now, or at the most.

    Linux hands a parent's ru_maxrss down to a child, so it is asked only where there is nothing else.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = "VmHWM" if peak else "VmRSS"
        found = next(text for text in status.read_text().splitlines() if text.startswith(line))
        return int(found.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024
