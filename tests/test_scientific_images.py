"""Twelve bands of 16 bits, and floating point with missing pixels, through every command there is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result

from maskzoo.cli import main

BACKBONE = 'backbone={timm="vit_tiny_patch16_224",patch_size=8,options={embed_dim=16,depth=1,num_heads=2}}'
QUICK = [
    "train.steps=3", "train.batch_size=4", "train.device=cpu", "train.pictures=2", "train.precision=fp32",
    "objective.decoder_dim=16", "objective.decoder_depth=1", 'evaluation=["knn","reconstruction"]', BACKBONE,
]  # fmt: skip
SETTINGS = [word for setting in QUICK for word in ("--set", setting)]


def maskzoo(*words: object) -> Result:
    done = CliRunner().invoke(main, [str(word) for word in words], env={"COLUMNS": "200"}, prog_name="maskzoo")
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def satellites(root: Path) -> Path:
    """Reflectance of 0 to 10,000 in twelve bands of 16 bits, of two kinds of land."""
    for kind in range(2):
        for number in range(12):
            random = np.random.default_rng(100 * kind + number)
            scene = random.integers(500 + 3000 * kind, 4000 + 6000 * kind, (12, 32, 48)).astype(np.uint16)
            path = root / f"land{kind}" / f"{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, scene, photometric="minisblack")
    return root


def fields(root: Path) -> Path:
    """Two channels of floating point; a tenth of the pixels are missing, and one image has a corner that is."""
    for kind in range(2):
        for number in range(12):
            random = np.random.default_rng(100 * kind + number)
            field = random.normal(270 + 10 * kind, 5, (2, 32, 32)).astype(np.float32)
            field[random.random((2, 32, 32)) < 0.1] = np.nan
            field[:, :16, :16] = np.nan if number == 0 else field[:, :16, :16]
            path = root / f"month{kind}" / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, field)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("make", [satellites, fields])
@pytest.mark.parametrize("masker", ["random", "clmae"])
def test_every_command_takes_them(make: object, masker: str, tmp_path: Path):
    data = make(tmp_path / "data")  # type: ignore[operator]
    done = maskzoo("train", "--data", data, "--masker", masker, *SETTINGS, "--out", tmp_path / "run")
    channels = 12 if make is satellites else 2
    assert f"{channels} channels" in done.output
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 3
    assert all(np.isfinite(line["loss"]) and not line["skipped"] for line in metrics)
    assert list((tmp_path / "run" / "masks").glob("*.png"))
    assert "knn" in maskzoo("evaluate", tmp_path / "run", "--with", "knn").output
    image = next(data.rglob("*.npy" if make is fields else "*.tif"))
    maskzoo("preview", image, "--run", tmp_path / "run", "--out", tmp_path / "preview.png")
    assert (tmp_path / "preview.png").stat().st_size > 1000
    maskzoo("export", tmp_path / "run", tmp_path / "export")
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert len(config["pretrained_cfg"]["mean"]) == channels
    maskzoo("cost", "--data", data, *SETTINGS)
    maskzoo("data", data)


@pytest.mark.slow
@pytest.mark.parametrize("make", [satellites, fields])
def test_they_are_compared(make: object, tmp_path: Path):
    data = make(tmp_path / "data")  # type: ignore[operator]
    settings = [word for word in SETTINGS if word != "--set" and "pictures" not in word]
    words = [word for setting in settings for word in ("--set", setting)]
    maskzoo("compare", "--data", data, "--maskers", "random,block", "--seeds", "2", *words, "--out", tmp_path / "both")
    assert (tmp_path / "both" / "report.html").is_file()


@pytest.mark.slow
def test_what_is_stored_in_missing_pixels_changes_nothing(tmp_path: Path):
    losses = []
    for value in (np.nan, np.inf):
        data = fields(tmp_path / str(value) / "data")
        for path in data.rglob("*.npy"):
            field = np.load(path)
            field[np.isnan(field)] = value
            np.save(path, field)
        maskzoo("train", "--data", data, *SETTINGS, "--out", tmp_path / str(value) / "run")
        lines = (tmp_path / str(value) / "run" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1]
