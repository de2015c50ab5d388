"""Two processes train as one does: DDP and FSDP2, over gloo on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_steps import figures_of

PROGRAM = Path(__file__).parent / "distributed_steps.py"
STRATEGIES = {
    "random": "random",
    "attmask": {"use": "attmask", "hints": 0.3},
    "clmae": "clmae",
    "block": "block",
    # One of two learners is off; its parameters must neither be waited for nor moved.
    "switch": {"use": "switch", "at": [0.5], "parts": ["clmae", {"use": "clmae", "depth": 1}]},
    "mix": {"use": "mix", "parts": ["random", "clmae"]},
}
STEPS = 4


def case(strategy: str, **train) -> dict:
    return {
        "do": STEPS,
        "strategy": STRATEGIES[strategy],
        "optimizer": {"clip": 1.0},
        "train": {"steps": STEPS, "batch_size": 16, **train},
    }


CASES = {
    **{
        f"{strategy} {parallel}": case(strategy, parallel=parallel)
        for strategy in STRATEGIES
        for parallel in ("ddp", "fsdp2")
    },
    "clmae fsdp2 recomputed": case("clmae", parallel="fsdp2", recompute=True),
    "clmae ddp accumulated": case("clmae", accumulate=2),
    "random ddp with holes": {**case("random"), "holes": True},
    "clmae fsdp2 with holes": {**case("clmae", parallel="fsdp2", accumulate=2), "holes": True},
    "attmask fsdp2 accumulated": case("attmask", parallel="fsdp2", accumulate=2),
}

RESNET = {"timm": "resnet18", "options": {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}}
NORMED = {
    f"normed {parallel}": {**case("random", parallel=parallel), "backbone": RESNET, "statistics": True}
    for parallel in ("ddp", "fsdp2")
}
POISONED = {f"poisoned {parallel}": {**case("clmae", parallel=parallel), "poison": 1} for parallel in ("ddp", "fsdp2")}

BAD_SCORES = {
    f"bad scores {strategy} {parallel}": {**case(strategy, parallel=parallel), "bad_scores": 1}
    for strategy in ("random", "clmae")
    for parallel in ("ddp", "fsdp2")
}


def torchrun(cases: dict, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, str(PROGRAM), json.dumps(cases)], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def together() -> dict[str, list[dict[str, float]]]:
    done = torchrun({**CASES, **POISONED, **NORMED, **BAD_SCORES})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does(name: str, together):
    plain = {**CASES[name], "train": {**CASES[name]["train"], "parallel": "ddp", "recompute": False}}
    alone = figures_of(plain)
    assert len(together[name]) == STEPS
    for one, two in zip(alone, together[name], strict=True):
        assert one.keys() == two.keys()
        for figure in one:
            assert two[figure] == pytest.approx(one[figure], rel=1e-5, abs=1e-5), figure
    assert alone[0]["loss"] != alone[-1]["loss"]


@pytest.mark.slow
def test_accumulated_micro_batches_are_the_batch_where_nothing_hangs_on_its_statistics():
    for strategy in ("random", "attmask", "block"):
        whole, parts = figures_of(case(strategy)), figures_of(case(strategy, accumulate=4))
        for one, four in zip(whole, parts, strict=True):
            assert four["loss"] == pytest.approx(one["loss"], rel=1e-5)
            assert four["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_a_learner_of_batch_statistics_sees_those_of_its_micro_batches():
    whole, parts = figures_of(case("clmae")), figures_of(case("clmae", accumulate=4))
    assert parts[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-5)  # the model's step has none
    assert parts[0]["clmae/binary"] == pytest.approx(whole[0]["clmae/binary"], rel=1e-5)  # a plain mean
    assert parts[0]["clmae/kl"] == pytest.approx(whole[0]["clmae/kl"] / 4, rel=1e-3)  # summed over the batch
    assert abs(parts[0]["clmae/diversity"] - whole[0]["clmae/diversity"]) > 1e-4


@pytest.mark.slow
def test_recomputed_activations_change_no_figure():
    kept, recomputed = figures_of(case("clmae")), figures_of(case("clmae", recompute=True))
    torch.testing.assert_close(
        torch.tensor([list(step.values()) for step in recomputed]),
        torch.tensor([list(step.values()) for step in kept]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMED)
def test_the_running_averages_of_all_processes_are_the_same(name: str, together):
    (found,) = together[name]
    assert found["moved"] > 0
    assert found["apart"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_SCORES)
def test_bad_scores_in_one_process_keep_all_of_them_where_they_are(name: str, together):
    figures = together[name]
    strategy = name.split()[2]
    assert [step["skipped"] for step in figures] == [0, 1, 0, 0]
    assert figures[1][f"{strategy}/bad_scores"] > 0
    assert not any(f"{strategy}/bad_scores" in step for step in (figures[0], *figures[2:]))


@pytest.mark.slow
@pytest.mark.parametrize("name", POISONED)
def test_what_goes_bad_in_one_process_is_blamed_and_not_what_it_spoils_in_others(name: str, together):
    (found,) = together[name]
    assert found["culprit"] == "the output of 'objective.backbone.model.blocks.0.mlp' (Mlp) (in process 1)"
