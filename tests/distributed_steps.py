"""A few steps of tiny runs, alone or as one of the processes that torchrun starts; prints what the steps gave.

The one argument is JSON: a case, or several by name. A case is a recipe's sections, `strategy`, `do` (how many steps),
and, where wanted, `folder` (save a checkpoint there at the end), `resume` (a checkpoint to go on from), `poison`
(the process in which a block gives NaN; then the case prints what is blamed), `bad_scores` (the process in which the
scores of the second step are NaN), `holes` (some pixels were not measured), and `statistics` (print how far apart the
running averages of BatchNorms are).
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from helpers import REGISTRY, noise_images, tiny_recipe, with_holes

from maskzoo import checkpoint, processes
from maskzoo.build import build
from maskzoo.data.batches import batches
from maskzoo.diagnosis import first_bad
from maskzoo.protocols import Batch
from maskzoo.train import Session, train


def figures_of(case: dict[str, Any]) -> list[dict[str, Any]]:
    case = dict(case)
    strategy, steps = case.pop("strategy"), case.pop("do")
    folder, resume, poison = (case.pop(name, None) for name in ("folder", "resume", "poison"))
    bad_scores = case.pop("bad_scores", None)
    statistics = case.pop("statistics", False)
    dataset = with_holes(noise_images(64)) if case.pop("holes", False) else noise_images(64)
    recipe = tiny_recipe(strategy, **case)
    session = build(recipe, dataset, REGISTRY, steps_in_epoch=64 // recipe.train.batch_size)
    if resume is not None:
        checkpoint.load(session, checkpoint.read(Path(resume)), Path(resume))
    source = batches(
        dataset,
        size=session.image_size,
        batch_size=recipe.train.batch_size,
        seed=session.seed,
        start=session.step,
        steps=session.steps,
        rank=processes.rank(),
        world=processes.world(),
        accumulate=session.accumulate,
    )
    if poison is not None:
        return [{"culprit": culprit(session, poison, next(source))}]
    if bad_scores == processes.rank():
        spoil_scores(session.strategy)
    figures = list(itertools.islice(train(session, source), steps))
    if statistics:
        means = [part.running_mean for part in session.objective.modules() if isinstance(part, torch.nn.BatchNorm2d)]
        seen = processes.gather(torch.cat(means)[None])
        return [{"moved": seen[0].abs().mean().item(), "apart": (seen - seen[:1]).abs().max().item()}]
    if folder is not None:
        checkpoint.save(session, Path(folder))
    return figures


def spoil_scores(strategy: Any) -> None:
    scores = strategy.scores
    strategy.scores = lambda context: scores(context) * (math.nan if context.step == 1 else 1.0)


def culprit(session: Session, poison: int, batch: Batch) -> str:
    if processes.rank() == poison:
        session.objective.backbone.model.blocks[0].mlp.register_forward_hook(lambda *made: made[2] * math.nan)
    session.step += 1
    return first_bad(session, [batch])


def main(cases: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    processes.join(torch.device("cpu"))
    made = figures_of(cases) if "strategy" in cases else {name: figures_of(case) for name, case in cases.items()}
    if processes.first():
        print(json.dumps(made))
    processes.leave()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
