"""What all tests share."""

from __future__ import annotations

import os

# Two cores, several processes: threads that spin for each other cost more than they give.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
