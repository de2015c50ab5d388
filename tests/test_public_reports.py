"""Situations out of public reports of people who train on images of their own, each with its right answer.

Every test makes a small input like the one that was reported, and runs the program on it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from click.testing import CliRunner, Result
from PIL import Image

from maskzoo.cli import main as commands

SMALL = [
    "--set", "train.pictures=0", "--set", "train.batch_size=4", "--set", "train.device=cpu", "--set", "train.steps=2",
    "--set", "train.precision=fp32", "--set", "objective.decoder_dim=16", "--set", "objective.decoder_depth=1",
]  # fmt: skip
BACKBONE = '{timm="vit_tiny_patch16_224",patch_size=8,image_size=32,options={embed_dim=16,depth=1,num_heads=2}}'
SUPERVISED = [
    *[word for pair in zip(SMALL[::2], SMALL[1::2], strict=True) if "decoder" not in pair[1] for word in pair],
    "--objective", "classify", "--ratio", "0", "--set", 'evaluation=["classifier"]',
]  # fmt: skip


def maskzoo(*words: object) -> Result:
    return CliRunner().invoke(commands, [str(word) for word in words], env={"COLUMNS": "300"}, prog_name="maskzoo")


def said(result: Result) -> str:
    """Everything that a command printed, errors included, on one line."""
    return " ".join(result.output.split())


def train(data: object, *words: object, out: Path, small: Sequence[str] = SMALL) -> Result:
    backbone = [] if any("backbone" in str(word) for word in words) else ["--set", f"backbone={BACKBONE}"]
    return maskzoo("train", "--data", data, "--out", out, *small, *backbone, *words)


def picture(path: Path, shade: int = 0, size: tuple[int, int] = (32, 32), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(sum(os.fsencode(path.name)) + shade).integers(0, 120, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise + np.uint8(shade)).save(path, **options)
    return path


def photos(root: Path, *classes: str, count: int = 12, ending: str = ".png") -> Path:
    for shade, name in enumerate(classes):
        for number in range(count):
            picture(root / name / f"{number}{ending}", 30 * (shade % 4))
    return root


def metrics_of(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# -------------------------------------------------------------------------------------------------- folders and files
@pytest.mark.slow
def test_training_from_inside_the_data_folder_twice_sees_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = photos(tmp_path / "photos", "cat", "dog")
    monkeypatch.chdir(root)
    for _ in range(2):
        done = maskzoo("train", "--data", ".", *SMALL, "--set", f"backbone={BACKBONE}", "--set", "train.pictures=4")
        assert done.exit_code == 0, done.output
        assert "2 classes" in said(done)
    runs = sorted((root / "runs").iterdir())
    assert len(runs) == 2
    again = maskzoo("train", "--data", ".", *SMALL, "--set", f"backbone={BACKBONE}", "--set", "train.pictures=4",
                    "--out", runs[0], "--resume")  # fmt: skip
    assert again.exit_code == 0, again.output
    assert maskzoo("evaluate", runs[0]).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_that_is_called_as_a_split_is_a_class(name: str, tmp_path: Path):
    done = train(photos(tmp_path / "vehicles", "bus", "car", "plane", name), out=tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "4 classes" in said(done)
    assert "44 training" in said(done)


@pytest.mark.slow
def test_images_are_known_by_what_they_are_and_not_by_their_ending(tmp_path: Path):
    endings = {"cat": (".jpg", "JPEG"), "dog": (".JPG", "JPEG"), "emu": (".jfif", "JPEG"), "fox": (".gif", "GIF"),
               "gnu": (".jpe", "JPEG")}  # fmt: skip
    for name, (ending, kind) in endings.items():
        for number in range(8):
            picture(tmp_path / "data" / name / f"{number}{ending}", format=kind)
    done = train(tmp_path / "data", out=tmp_path / "run", small=SUPERVISED)
    assert done.exit_code == 0, done.output
    assert "5 classes" in said(done)


@pytest.mark.slow
def test_a_class_of_which_no_file_can_be_read_is_refused(tmp_path: Path):
    root = photos(tmp_path / "data", "cat", "dog")
    (root / "emu").mkdir()
    for number in range(4):
        (root / "emu" / f"{number}.xyz").write_bytes(b"no image")
    done = train(root, out=tmp_path / "run")
    assert done.exit_code == 2
    assert "emu" in said(done)
    assert ".xyz" in said(done)


@pytest.mark.slow
def test_an_exported_classifier_says_its_classes(tmp_path: Path):
    root = photos(tmp_path / "numbers", *map(str, range(12)), count=4)
    assert train(root, out=tmp_path / "run", small=SUPERVISED).exit_code == 0
    assert maskzoo("export", tmp_path / "run", tmp_path / "export").exit_code == 0
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["label_names"] == sorted(map(str, range(12)))
    from maskzoo.data.folder import Folder
    from maskzoo.data.through_timm import ThroughTimm

    assert list(Folder(root=str(root)).classes) == list(ThroughTimm(root=str(root)).classes)


@pytest.mark.slow
@pytest.mark.parametrize("use", ["folder", "timm"])
@pytest.mark.parametrize("where", ["file", "class", "root"])
def test_a_name_that_is_no_utf8(use: str, where: str, tmp_path: Path):
    strange = os.fsdecode(b"caf\xe9")
    root = tmp_path / (strange if where == "root" else "data")
    photos(root, "a", strange if where == "class" else "b", count=10)
    if where == "file":
        (root / "a" / "0.png").rename(root / "a" / f"{strange}.png")
    done = train(root, "--set", f"data.use={use}", out=tmp_path / "run")
    assert done.exit_code in (0, 2), done.output
    assert done.exit_code == 0 or where == "root"
    assert done.exception is None or isinstance(done.exception, SystemExit)
    if use == "folder":
        shown = maskzoo("preview", next((root / "a").glob("caf*"), root / "a" / "1.png"), "--out", tmp_path / "p.png")
        assert shown.exit_code == 0, shown.output


@pytest.mark.slow
def test_accents_composed_and_decomposed_are_one_class(tmp_path: Path):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        photos(tmp_path / "data" / split, unicodedata.normalize(form, "café"), "bar", count=6)
    done = train(tmp_path / "data", out=tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "2 classes" in said(done)


@pytest.mark.slow
@pytest.mark.parametrize("test", ["unlabelled", "empty"])
def test_the_layout_of_imagenet(test: str, tmp_path: Path):
    root = tmp_path / "imagenet"
    for split in ("train", "val"):
        photos(root / split, "n01", "n02", count=8)
    (root / "test").mkdir()
    for number in range(6 if test == "unlabelled" else 0):
        picture(root / "test" / f"{number}.png")
    done = train(root, out=tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "16 test" in said(done)


@pytest.mark.slow
@pytest.mark.parametrize("nested", ["images", "a/images"])
def test_one_folder_of_images_is_no_class(nested: str, tmp_path: Path):
    photos(tmp_path / "data", nested, count=24)
    done = train(tmp_path / "data", out=tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "100.0%" not in said(done)
    refused = train(tmp_path / "data", out=tmp_path / "other", small=SUPERVISED)
    assert refused.exit_code == 2
    assert "label" in said(refused)


# ------------------------------------------------------------------------------------------------------------- pixels
def reading(*files: Path, **options: object) -> torch.Tensor:
    """Levels [M, C, H, W] of a folder of these files, as a run reads them."""
    from maskzoo.data.folder import Folder
    from maskzoo.data.prepare import levels

    data = Folder(root=str(files[0].parent), **options)  # type: ignore[arg-type]
    return torch.stack([levels(data.train[index].image) for index in range(len(data.train))])


def test_twelve_bits_in_a_file_of_sixteen(tmp_path: Path):
    ramp = (np.arange(64 * 64).reshape(64, 64) % 4096).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "detector.png")
    (levels,) = reading(tmp_path / "detector.png")
    assert len(levels.unique()) == 4096
    assert 0.99 < levels.max() <= 1.0


def test_twelve_bands_as_pages_are_twelve_channels(tmp_path: Path):
    bands = np.random.default_rng(0).integers(0, 10_000, (12, 24, 20), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "scene.tif", bands, photometric="minisblack")
    from maskzoo.data.folder import Folder

    data = Folder(root=str(tmp_path))
    assert data.channels == 12
    first = data.train[0].image
    assert torch.equal(first.double().argsort(dim=2), torch.from_numpy(bands.astype(np.float64)).argsort(dim=2))


@pytest.mark.parametrize("ink", [(0, 0, 0), (40, 40, 200)])
def test_a_picture_in_the_alpha_channel_is_seen(ink: tuple[int, int, int], tmp_path: Path):
    icon = Image.new("RGBA", (32, 32), (*ink, 0))
    icon.paste((*ink, 255), (8, 8, 24, 24))
    icon.save(tmp_path / "icon.png")
    (levels,) = reading(tmp_path / "icon.png")
    assert (levels[:, 16, 16] - levels[:, 0, 0]).abs().max() > 0.2


def test_a_phone_photo_is_upright_for_training_evaluation_and_preview(tmp_path: Path):
    photo = Image.new("RGB", (60, 40), "red")
    photo.paste("blue", (0, 0, 30, 40))  # on the left as stored: at the top once it is turned by a quarter
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "photo.png", exif=exif)
    from maskzoo.data.folder import Folder

    data = Folder(root=str(tmp_path))
    assert tuple(data.size) == (60, 40)
    image = data.train[0].image
    assert image.shape == (3, 60, 40)
    assert image[2, 5].float().mean() > 200
    assert image[0, -5].float().mean() > 200


def test_signed_sixteen_bits_are_read(tmp_path: Path):
    values = np.linspace(-1000, 3000, 32 * 32).reshape(32, 32).astype(np.int16)
    tifffile.imwrite(tmp_path / "scan.tif", values)
    (levels,) = reading(tmp_path / "scan.tif")
    assert len(levels[0].unique()) > 900


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 12])
def test_images_of_any_number_of_channels_can_be_drawn(channels: int):
    from maskzoo.pictures import coloured

    assert coloured(torch.rand(2, channels, 8, 8)).shape == (2, 3, 8, 8)


# -------------------------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize(
    "size",
    [(31, 31), (97, 97), (222, 222), (225, 225), (250, 250), (299, 299), (375, 500), (1, 1), (1, 2000), (20, 3000)],
)
def test_an_automatic_grid_is_bounded(size: tuple[int, int]):
    from helpers import REGISTRY

    from maskzoo.recipe import make

    use = {"use": "vit", "timm": "vit_tiny_patch16_224", "patch_size": "auto",
           "options": {"embed_dim": 8, "depth": 1, "num_heads": 1}}  # fmt: skip
    backbone = make(REGISTRY, "backbone", use, "backbone", channels=3, data_size=list(size))
    rows, columns = backbone.grid
    assert min(rows, columns) >= 4
    assert rows * columns <= 32 * 32
    assert min(backbone.patch_size) > 1


def test_discs_stay_discs_on_wide_images():
    from helpers import Images

    from maskzoo.data.batches import batches

    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(192), indexing="ij")
    disc = (((rows - 32) ** 2 + (columns - 96) ** 2) <= 12**2).to(torch.uint8) * 255
    data = Images(disc.expand(16, 3, 64, 192))
    ratios = []
    for batch in batches(data, size=(64, 192), batch_size=16, seed=0, start=0, steps=8, scale=(0.5, 1.0)):
        for image in batch.images[:, 0] > 0:
            high, wide = image.any(dim=1).nonzero().flatten(), image.any(dim=0).nonzero().flatten()
            if len(high) and wide[0] > 0 and wide[-1] < 191 and high[0] > 0 and high[-1] < 63:
                ratios.append(len(wide) / len(high))
    assert len(ratios) > 30
    assert 0.93 < float(np.median(ratios)) < 1.07


@pytest.mark.slow
def test_batchnorm_over_a_single_value_is_refused_before_training(tmp_path: Path):
    root = photos(tmp_path / "data", "cat", "dog")
    done = maskzoo(
        "train", "--data", root, "--out", tmp_path / "run", *SMALL, "--ratio", "0.93",
        "--set", 'backbone={timm="resnet18",hidden="masked-convolution"}', "--set", "train.accumulate=4",
    )  # fmt: skip
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert "accumulate" in said(done) or "batch" in said(done)


# ------------------------------------------------------------------------------------------------------------ weights
TINY_VIT = {"embed_dim": 8, "depth": 1, "num_heads": 1}


def vit(size: tuple[int, int]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", patch_size=4, img_size=size, num_classes=0, **TINY_VIT)
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


def backbone_words(size: int, name: str = "vit_tiny_patch16_224") -> list[str]:
    options = "options={embed_dim=8,depth=1,num_heads=1}"
    return ["--set", f'backbone={{timm="{name}",patch_size=4,image_size={size},{options}}}']


@pytest.mark.slow
def test_positions_of_another_grid_with_as_many_rows_are_not_taken_silently(tmp_path: Path):
    data = photos(tmp_path / "data", "cat", "dog")
    torch.save(vit((8, 32)), tmp_path / "vit.pth")
    word = ["--weights", tmp_path / "vit.pth", *backbone_words(16)]
    refused = train(data, *word, out=tmp_path / "run")
    assert refused.exit_code == 2
    assert "2 x 8" in said(refused)
    taken = train(data, *word, "--set", "weights.grid=[2,8]", out=tmp_path / "other")
    assert taken.exit_code == 0, taken.output


@pytest.mark.slow
def test_positions_out_of_a_run_are_resized_from_its_own_grid(tmp_path: Path):
    for number in range(12):
        picture(tmp_path / "wide" / f"{number}.png", size=(8, 32))
        picture(tmp_path / "square" / f"{number}.png", size=(16, 16))
    wide = backbone_words(16)[1].replace("image_size=16", "image_size=[8,32]")
    first = train(tmp_path / "wide", "--set", wide, out=tmp_path / "first")
    assert first.exit_code == 0, first.output
    second = train(
        tmp_path / "square", "--weights", tmp_path / "first", *backbone_words(16), "--set", "optimizer.lr=0.0",
        "--set", "optimizer.weight_decay=0.0", out=tmp_path / "second",
    )  # fmt: skip
    assert second.exit_code == 0, second.output
    from helpers import REGISTRY
    from timm.layers import resample_abs_pos_embed

    from maskzoo.trained import open_run

    table, here = (open_run(tmp_path / name, REGISTRY).backbone.model.pos_embed for name in ("first", "second"))
    assert torch.allclose(here, resample_abs_pos_embed(table, (4, 4), old_size=(2, 8)), atol=1e-5)


@pytest.mark.slow
def test_timms_own_file_fits_timms_own_model(tmp_path: Path):
    data = photos(tmp_path / "data", "cat", "dog")
    torch.manual_seed(0)
    model = timm.create_model("beit_base_patch16_224", patch_size=4, img_size=16, **TINY_VIT)
    torch.save(model.state_dict(), tmp_path / "beit.pth")
    words = ["--weights", tmp_path / "beit.pth", *backbone_words(16, "beit_base_patch16_224")]
    done = train(data, *words, out=tmp_path / "run")
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_a_file_of_two_encoders_asks_which(tmp_path: Path):
    data = photos(tmp_path / "data", "cat", "dog")
    both = {
        part: {f"module.{name}": value for name, value in vit((16, 16)).items()}
        for part in ("encoder", "target_encoder")
    }
    torch.save({**both, "epoch": 3}, tmp_path / "ijepa.pth")
    words = ["--weights", tmp_path / "ijepa.pth", *backbone_words(16), "--set", "weights.grid=[4,4]"]
    refused = train(data, *words, out=tmp_path / "run")
    assert refused.exit_code == 2
    for word in ("encoder", "target_encoder", "part"):
        assert word in said(refused)
    taken = train(data, *words, "--set", "weights.part=target_encoder", out=tmp_path / "other")
    assert taken.exit_code == 0, taken.output


@pytest.mark.slow
def test_what_a_file_holds_besides_tensors_is_named(tmp_path: Path):
    data = photos(tmp_path / "data", "cat", "dog")
    torch.save({"model": vit((16, 16)), "best": np.float64(0.5)}, tmp_path / "numpy.pth")
    done = train(data, "--weights", tmp_path / "numpy.pth", *backbone_words(16), out=tmp_path / "run")
    assert done.exit_code == 2
    assert "numpy" in said(done)
    assert "torch.save(" in said(done)


# ------------------------------------------------------------------------------------------------------------- labels
@pytest.mark.slow
def test_labels_of_minus_one_are_none(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    for split, labelled in (("train", True), ("test", False)):
        contents = []
        for number in range(12):
            held = io.BytesIO()
            Image.new("RGB", (32, 32), (number * 20, 9, 9)).save(held, "PNG")
            contents.append({"bytes": held.getvalue(), "path": None})
        table = {"image": contents, "label": [number % 3 if labelled else -1 for number in range(12)]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        (tmp_path / "hub").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "hub" / f"{split}.parquet")
    data = f'data={{use="timm",source="hfds/{tmp_path / "hub"}",test_split="test",class_count=3}}'
    done = maskzoo("train", "--set", data, *SMALL, "--set", f"backbone={BACKBONE}", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "0.0%" not in said(done)
    assert "label" in said(done)


@pytest.mark.slow
def test_labels_in_a_tar_that_is_not_sorted_are_found_or_told(tmp_path: Path):
    with tarfile.open(tmp_path / "train-0000.tar", "w") as shard:
        for ending in ("png", "cls"):
            for number in range(12):
                content = picture(tmp_path / f"{number}.png").read_bytes() if ending == "png" else b"%d" % (number % 3)
                member = tarfile.TarInfo(f"{number:04}.{ending}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    data = f'data={{use="shards",root="{tmp_path}"}}'
    done = maskzoo("train", "--set", data, *SMALL, "--set", f"backbone={BACKBONE}", "--out", tmp_path / "run")
    assert done.exit_code == 0 or "12" in said(done)
    assert "no labels" not in said(done)


@pytest.mark.slow
def test_labels_in_a_table_beside_the_images(tmp_path: Path):
    for number in range(24):
        picture(tmp_path / "data" / "images" / f"{number}.png")
    with open(tmp_path / "data" / "labels.csv", "w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["file", "label"])
        rows.writerows([f"images/{number}.png", ("cat", "dog")[number % 2]] for number in range(24))
    done = train(tmp_path / "data", "--set", "data.labels=labels.csv", out=tmp_path / "run", small=SUPERVISED)
    assert done.exit_code == 0, done.output
    assert "2 classes" in said(done)


# --------------------------------------------------------------------------------------------------------- arithmetic
@pytest.mark.parametrize(("ratio", "patches", "hidden"), [(0.8, 25, 20), (0.9, 100, 90), (0.9, 10, 9)])
def test_a_share_that_is_whole_hides_as_many(ratio: float, patches: int, hidden: int):
    from helpers import strategy_of

    assert strategy_of("random").count(ratio, patches) == hidden


def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path: Path):
    from maskzoo.recipe import Recipe, read

    (tmp_path / "bom.toml").write_text("[train]\nsteps = 3\n", encoding="utf-8-sig")
    assert Recipe.from_plain(read(tmp_path / "bom.toml")).train.steps == 3
