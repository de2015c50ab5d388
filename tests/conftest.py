"""What all tests share."""

from __future__ import annotations

import os

# Two cores, several processes: threads that spin for each other cost more than they give.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several, which share the cores already
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def the_global_generator_is_left_as_it_was():
    """No test may lean on another's draws: each begins with the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.hookimpl(tryfirst=True)  # before -m chooses by the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave `sampled(n)` tests n fast cases, spread evenly from the first to the last; all others are slow."""
    cases: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("long"):
            cases.setdefault((str(item.path), item.originalname), []).append(item)  # type: ignore[attr-defined]
    for found in cases.values():
        count = min(marker.args[0] for marker in found[0].iter_markers("sampled"))
        last = len(found) - 1
        kept = {round(number * last / max(1, count - 1)) for number in range(count)}
        for place, item in enumerate(found):
            if len(found) > count and place not in kept:
                item.add_marker(pytest.mark.slow)
