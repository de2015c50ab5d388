"""What a diagnosis of a bad step does again is that very step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import random_batches, same_state, state_of, tiny_session
from made_up import session_with
from torch import Tensor

from maskzoo.diagnosis import first_bad
from maskzoo.train import train


def with_dropout(use: Any = "random", **sections: Any) -> Any:
    """A session whose blocks drop whole images' paths at random."""
    options = {"embed_dim": 24, "depth": 2, "num_heads": 2, "proj_drop_rate": 0.3}
    backbone = {"timm": "vit_tiny_patch16_224", "patch_size": 4, "position": "sin-cos", "options": options}
    return session_with([], use, backbone=backbone, **sections)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_diagnosis_draws_what_the_step_drew(accumulate: int):
    session = with_dropout("clmae", train={"steps": 3, "batch_size": 6, "accumulate": accumulate})
    drop = session.objective.backbone.model.blocks[0].mlp.drop1
    seen: list[Tensor] = []
    drop.register_forward_hook(lambda module, given, made: seen.append(made.detach() == 0))
    session.mover.clip = 0.0  # so that nothing moves, and the learners see the same model again
    session.lr = session.strategy_lr = lambda progress: 0.0
    batches = list(random_batches(2 * accumulate, count=6 // accumulate))
    list(train(session, batches))
    trained, seen[:] = seen[-2 * accumulate :], []
    before = state_of(session.objective)
    assert first_bad(session, batches[-accumulate:]) == "nothing of that step when it was done again"
    assert same_state(session.objective, before)
    assert len(seen) == len(trained)
    assert all(here.equal(there) for here, there in zip(seen, trained, strict=True))


def listen_for_nan(objective: Any, names: list[str]) -> None:
    """Note the names of dropouts that give NaN."""
    for name, module in objective.named_modules():
        if name.endswith("mlp.drop1"):

            def hear(module: Any, given: Any, made: Tensor, name: str = name) -> None:
                if made.isnan().any():
                    names.append(name)

            module.register_forward_hook(hear)


@pytest.mark.slow
def test_the_module_that_a_step_drew_bad_is_blamed_and_none_that_another_draw_would_spoil():
    """Each block goes bad by what its own dropout draws, so that another draw blames another, or none."""
    blamed = set()
    for seed in range(4):
        session = with_dropout(train={"steps": 1, "seed": seed})
        for number, block in enumerate(session.objective.backbone.model.blocks):

            def spoil(module: Any, given: Any, made: Tensor, number: int = number) -> Tensor:
                spared = bool(made[0, 0, 0] != 0)
                return made * math.nan if spared == bool(number) else made

            block.mlp.drop1.register_forward_hook(spoil)
        names: list[str] = []
        listen_for_nan(session.objective, names)
        (batch,) = random_batches(1)
        (figures,) = train(session, [batch])
        first = names[0] if names else None
        torch.manual_seed(1234 + seed)  # whatever was drawn in between
        said = first_bad(session, [batch])
        assert figures["skipped"] == bool(first)
        assert said == (f"the output of 'objective.{first}' (Dropout)" if first else said)
        blamed.add(first)
    assert len(blamed) > 1


def test_a_step_without_the_learners_is_diagnosed_without_them():
    session = tiny_session("clmae", masking={"strategy_every": 2}, train={"steps": 4})
    source = train(session, random_batches(2))
    next(source)
    next(source)
    asked = []
    session.strategy.soft_mask = lambda context: asked.append(context)
    (batch,) = random_batches(1)
    first_bad(session, [batch])
    assert asked == []
