"""Images of any number of channels, bits, size, shape and layout: trained on for two steps, or refused in a message."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from PIL import Image

from maskzoo.cli import main

DTYPES = {"8": np.uint8, "12": np.uint16, "16": np.uint16, "signed": np.int16, "float": np.float32, "nan": np.float32}
BACKBONES = ("vit_tiny_patch16_224", "resnet18")
QUICK = [
    "train.steps=2", "train.batch_size=4", "train.device=cpu", "train.pictures=1", "train.precision=fp32",
    "objective.decoder_dim=16", "objective.decoder_depth=1", "evaluation=[]",
]  # fmt: skip


def maskzoo(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], env={"COLUMNS": "200"}, prog_name="maskzoo")


def pixels(channels: int, bits: str, height: int, width: int, seed: int) -> np.ndarray:
    """[C, H, W] of that kind."""
    random = np.random.default_rng(seed)
    shape = (channels, height, width)
    if bits == "signed":
        return random.integers(-2000, 3000, shape).astype(np.int16)
    if bits in ("float", "nan"):
        values = random.normal(0.2, 0.3, shape).astype(np.float32)
        if bits == "nan":
            values[:, : height // 3, : width // 2] = np.nan
        return values
    return random.integers(0, 2 ** int(bits), shape).astype(DTYPES[bits])


def written(path: Path, values: np.ndarray, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "npy":
        np.save(path.with_suffix(".npy"), values)
    elif kind == "tif":
        tifffile.imwrite(path.with_suffix(".tif"), values, photometric="minisblack")
    else:
        single = values[0] if len(values) == 1 else np.moveaxis(values, 0, 2)
        Image.fromarray(single).save(path.with_suffix(".png"))


@some.composite
def folders(draw: Any) -> dict[str, Any]:
    channels = draw(some.integers(1, 13))
    bits = draw(some.sampled_from(sorted(DTYPES)))
    plain = channels in (1, 3, 4) and (bits == "8" or (channels == 1 and bits in ("12", "16")))
    height = draw(some.integers(1, 400))
    aspect = draw(some.floats(1 / 8, 8))
    return {
        "channels": channels,
        "bits": bits,
        "kind": draw(some.sampled_from(["npy", "tif", *(["png"] if plain else [])])),
        "size": (height, min(400, max(1, round(height * aspect)))),
        "layout": draw(some.sampled_from(["classes", "loose", "splits", "one folder"])),
        "backbone": draw(some.sampled_from(BACKBONES)),
    }


def placed(layout: str, number: int) -> str:
    return {
        "classes": f"{('a', 'b')[number % 2]}/{number}",
        "loose": str(number),
        "splits": f"{('train', 'test')[number % 4 == 3]}/{('a', 'b')[number % 2]}/{number}",
        "one folder": f"images/{number}",
    }[layout]


@pytest.mark.long
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(folder=folders())
def test_any_folder_trains_two_steps_or_is_refused_in_a_message(folder: dict[str, Any]):
    trains_or_refuses(folder)


@pytest.mark.slow
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(folder=folders())
def test_some_folders_train_two_steps_or_are_refused_in_a_message(folder: dict[str, Any]):
    trains_or_refuses(folder)


def trains_or_refuses(folder: dict[str, Any]) -> None:
    place = Path(tempfile.mkdtemp())
    try:
        for number in range(16):
            values = pixels(folder["channels"], folder["bits"], *folder["size"], seed=number)
            written(place / "data" / placed(folder["layout"], number), values, folder["kind"])
        sets = [word for setting in QUICK for word in ("--set", setting)]
        name = folder["backbone"]
        options = ",options={embed_dim=16,depth=1,num_heads=2}" if "vit" in name else ""
        done = maskzoo(
            "train", "--data", place / "data", *sets, "--set", f'backbone={{timm="{name}"{options}}}',
            "--out", place / "run",
        )  # fmt: skip
        assert done.exit_code in (0, 2), (folder, done.output, done.exception)
        assert done.exception is None or isinstance(done.exception, SystemExit), (folder, done.exception)
        assert "Traceback" not in done.output, folder
        if done.exit_code == 0:
            lines = (place / "run" / "metrics.jsonl").read_text().splitlines()
            assert len(lines) == 2, folder
            assert "NaN" not in lines[-1] and "null" not in lines[-1], (folder, lines[-1])  # noqa: PT018
        else:
            assert len(done.output.strip()) > 20, folder
            assert min(folder["size"]) < 4 or "channels" in done.output, (folder, done.output)
    finally:
        shutil.rmtree(place)
