import functools
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from maskzoo import Registry
from maskzoo.cost import Shape, flops_per_image

PROMISED = {"name", "size", "precision", "seconds", "flops", "share", "peak_bytes"}


def load() -> ModuleType:
    """The script as a module; it is not part of the package."""
    spec = importlib.util.spec_from_file_location(
        "step_benchmark", Path(__file__).parents[1] / "benchmarks" / "step.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # attrs looks its classes' module up
    spec.loader.exec_module(module)
    return module


step = load()
CPU = step.Setting(torch.device("cpu"))


@pytest.fixture(scope="module")
def needed() -> Any:
    return step.needs("maskzoo-mae", step.TINY, CPU)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole script at a size that takes no time, and in this one process."""
    monkeypatch.setattr(step, "SIZES", {step.TINY.pixels: step.TINY})
    monkeypatch.setattr(step, "measure", functools.partial(step.measure, ask=step.needs))
    rates = {"fp32": step.Rate(64, 1e-4), "bf16": step.Rate(64, 1e-3)}
    monkeypatch.setattr(step, "best_rate", lambda setting: rates[setting.precision])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["step.py", "--device", "cpu", "--steps", "1", *arguments])
    step.main()


def flops_by_hand(size: Any) -> int:
    """A multiplication and an addition are two; a backward pass costs two forward passes."""
    patches = (size.pixels // size.patch) ** 2
    pixels = 3 * size.patch**2
    seen, decoded = patches // 4 + 1, patches + 1  # tokens, with the class token

    def linear(tokens: int, wide: int, narrow: int) -> int:
        return 3 * 2 * tokens * wide * narrow

    def block(tokens: int, dim: int) -> int:
        layers = linear(tokens, dim, 3 * dim) + linear(tokens, dim, dim) + 2 * linear(tokens, dim, 4 * dim)
        products = 2 + 4  # of queries, keys and values; that a kernel makes the scores once more does not count
        return layers + products * 2 * tokens**2 * dim

    embedding = linear(patches, pixels, size.width) * 2 // 3  # images need no gradient
    encoder = embedding + size.depth * block(seen, size.width)
    decoder = linear(seen, size.width, size.decoder_dim) + size.decoder_depth * block(decoded, size.decoder_dim)
    return size.batch * (encoder + decoder + linear(decoded, size.decoder_dim, pixels))


def test_flops_of_a_mae_step_agree_with_a_count_by_hand(needed: Any) -> None:
    assert needed.flops == pytest.approx(flops_by_hand(step.TINY), rel=0.03)


@pytest.mark.slow
def test_the_benchmark_counts_as_the_program_does(needed: Any) -> None:
    recipe = step._recipe("random", step.TINY, CPU)
    costs = flops_per_image(recipe, Registry(), Shape((step.TINY.pixels, step.TINY.pixels)))
    assert needed.flops == pytest.approx(costs.total * step.TINY.batch, rel=1e-6)


@pytest.mark.usefixtures("tiny")
@pytest.mark.slow
def test_rows_hold_what_is_promised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    run(monkeypatch, "--only", "maskzoo-mae", "maskzoo-clmae", "--json", str(file))
    rows = json.loads(file.read_text())
    assert [row["name"] for row in rows] == ["matmul", "maskzoo-mae", "maskzoo-clmae", "matmul"]
    assert [row["precision"] for row in rows] == ["fp32", "fp32", "fp32", "bf16"]
    for row in rows:
        assert row.keys() >= PROMISED
        assert row["size"] == step.TINY.pixels
        assert row["seconds"] > 0
        assert row["flops"] > 0
    rate = rows[0]["flops"] / rows[0]["seconds"]
    for row in rows[:3]:
        assert row["share"] == pytest.approx(row["flops"] / row["seconds"] / rate)


@pytest.mark.usefixtures("tiny")
@pytest.mark.slow
def test_a_precision_without_hardware_is_skipped_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--only", "maskzoo-mae")
    assert "bf16 steps are skipped: bf16 is slower than fp32 here" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
@pytest.mark.slow
def test_a_missing_rival_is_left_out_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(step, "PACKAGES", {"lightly-mae": "no_such_package"})
    file = tmp_path / "step.json"
    run(monkeypatch, "--precision", "fp32", "--only", "lightly-mae", "maskzoo-mae", "--json", str(file))
    assert "lightly-mae is left out: no_such_package is not installed" in capsys.readouterr().out
    assert [row["name"] for row in json.loads(file.read_text())] == ["matmul", "maskzoo-mae"]


def test_contenders_take_turns() -> None:
    turns: list[str] = []

    def steps(name: str) -> Any:
        while True:
            turns.append(name)
            yield

    seconds = step.race({name: steps(name) for name in "AB"}, 3, torch.device("cpu"))
    assert "".join(turns) == "AB" * (step.WARM_UP + 3)
    assert {name: len(taken) for name, taken in seconds.items()} == {"A": 3, "B": 3}


def test_the_share_is_of_the_fastest_step() -> None:
    rate = step.Rate(100, 0.5)  # 4e6 FLOPs a second
    row = step.row("maskzoo-mae", step.TINY, CPU, [3.0, 2.0, 7.0], step.Need(10**6, 5), rate)
    assert (row["seconds"], row["median_seconds"], row["peak_bytes"]) == (2.0, 3.0, 5)
    assert row["share"] == pytest.approx(10**6 / 2.0 / 4e6)
    assert row["images_per_second"] == pytest.approx(step.TINY.batch / 2.0)


def test_the_price_of_learning_needs_both_steps() -> None:
    rows = [
        {"name": "maskzoo-mae", "seconds": 2.0, "flops": 10},
        {"name": "maskzoo-clmae", "seconds": 9.8, "flops": 46},
    ]
    assert step.price_of_learning(rows) == "clmae / mae: 4.9 x the time, 4.6 x the FLOPs"
    assert step.price_of_learning(rows[:1]) is None
