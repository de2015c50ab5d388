"""How much memory a run took."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskzoo.memory import PeakMemory, resident

MEBIBYTE = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can begin a peak anew")


def filled(mebibytes: int) -> torch.Tensor:
    return torch.ones(mebibytes * MEBIBYTE, dtype=torch.uint8)


@linux
def test_a_peak_is_that_of_its_own_time():
    large = filled(256)
    del large
    memory = PeakMemory(torch.device("cpu"))
    before = memory.bytes
    small = filled(64)
    assert 48 * MEBIBYTE < memory.bytes - before < 128 * MEBIBYTE  # not the 256 of before
    del small
    assert memory.bytes - before > 48 * MEBIBYTE


def test_where_a_peak_cannot_begin_anew_there_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskzoo.memory._status", lambda name: None)  # as on macOS, or in some containers
    assert PeakMemory(torch.device("cpu")).bytes is None
    assert resident(peak=True) > 0


def test_a_process_holds_something_now_and_no_more_than_at_the_most():
    assert 0 < resident(peak=False) <= resident(peak=True) + MEBIBYTE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_the_allocators():
    memory = PeakMemory(torch.device("cuda"))
    before = memory.bytes
    held = filled(64).cuda()
    del held
    assert memory.bytes - before >= 64 * MEBIBYTE
