"""A trained encoder for use elsewhere: as a folder that timm opens by itself, or as a plain file of weights.

Shapes: B images, C channels, H height, W width, P prefix tokens, N mask units, D channels of the latent, K classes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

import maskzoo
from maskzoo.backbones.adapter import TimmBackbone
from maskzoo.classnames import names_of, write_classes, written
from maskzoo.errors import MaskZooError, RecipeError
from maskzoo.evaluation.features import evaluating
from maskzoo.plain import is_utf8, printable, read_json
from maskzoo.recipe import describe
from maskzoo.seeds import stream
from maskzoo.signals import unfinished
from maskzoo.trained import Trained

POOLINGS = {"mean": "avg", "class": "token"}  # ours, and what timm calls them
NOT_OURS = ("tag", "license", "origin_url", "paper_ids", "paper_name", "notes")  # what timm says of its own weights


def export(trained: Trained, to: str, folder: Path) -> list[str]:
    """Write the encoder of a run into `folder`, for "timm" or as "safetensors"; what there is to say of it.

    Nothing that exists is overwritten. What is written for timm is opened again and compared with the run's own
    features before it gets its name. Raises RecipeError, or MaskZooError where it cannot be written.
    """
    if not is_utf8(str(folder.absolute())):
        raise RecipeError(
            f"'{printable(folder)}' is not UTF-8, and weights cannot be opened there; choose another folder"
        )
    try:
        place = folder.resolve()  # "." has no name to put another beside
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise RecipeError(f"'{folder}' exists already, and nothing is overwritten; choose another folder")
        beside = place.with_name(place.name + ".part")
        if beside.exists():
            raise RecipeError(f"'{beside}' is left of an export that was broken off; remove it")
    except (OSError, RuntimeError) as problem:  # such as a name that is too long; RuntimeError: links in a circle
        raise unwritable(folder, problem) from problem
    statistics = statistics_of(trained)
    try:
        beside.mkdir(parents=True)  # what is there by now is somebody else's, and is not removed below
    except OSError as problem:
        raise unwritable(folder, problem) from problem
    try:
        with unfinished(beside):
            said = (to_timm if to == "timm" else to_safetensors)(trained, beside, folder, statistics)
            arrive(beside, place)
    except (OSError, SafetensorError) as problem:  # the latter where the disk is full
        raise unwritable(folder, problem) from problem
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    if not statistics:
        instead = "; timm will use ImageNet's mean and deviation" if to == "timm" else ""
        said.append(f"mean and std are left out, since the data of the run cannot be opened{instead}")
    return said


def unwritable(folder: Path, problem: Exception) -> MaskZooError:
    """What to say where a folder cannot be written."""
    return MaskZooError(f"'{folder}' cannot be written: {problem}")


def arrive(beside: Path, place: Path) -> None:
    """Give a finished folder its name; an empty one that has it stays, for somebody may be standing in it."""
    if not place.exists():
        beside.replace(place)
        return
    if any(place.iterdir()):  # since it was looked at
        raise FileExistsError("somebody else has written there meanwhile")
    for file in beside.iterdir():
        file.replace(place / file.name)


def statistics_of(trained: Trained) -> dict[str, list[float]]:
    """Mean and deviation of the channels of the run's data, or nothing where the data are gone."""
    try:
        dataset = trained.dataset()
    except MaskZooError:
        return {}
    return {"mean": [float(value) for value in dataset.mean], "std": [float(value) for value in dataset.std]}


# ---------------------------------------------------------------------------------------------------------------- timm
def to_timm(trained: Trained, folder: Path, name: Path, statistics: Mapping[str, list[float]]) -> list[str]:
    """Write what `timm.create_model("local-dir:...", pretrained=True)` makes the same model of, to be called `name`."""
    backbone = trained.backbone
    if not isinstance(backbone, TimmBackbone):
        raise RecipeError(f"the backbone '{backbone.name}' is no timm model; --to safetensors takes any")
    height, width = trained.image_size
    images = torch.rand(2, backbone.channels, height, width, generator=stream(0, "export"))
    model, said = with_classifier(trained, images)
    data = {"input_size": (backbone.channels, height, width), "crop_pct": 1.0, "interpolation": "bicubic", **statistics}
    save_for_hf(model, str(folder), safe_serialization=True, data_config=data)
    names, lacking = names_of(trained, model.num_classes)
    correct(folder / "config.json", statistics, names, keep=NOT_OURS if backbone.pretrained else ())
    said += lacking
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad(), evaluating(backbone):
        same = close(features(again, images, backbone.prefix), backbone(images).float())
    if not same:
        raise MaskZooError(
            f"timm does not make the same features of '{backbone.timm}' as the run does, so nothing was written; "
            "--to safetensors keeps the weights"
        )
    normed = "model.head.norm(model.forward_features(images))"
    call = normed if ends_in_head(model) else "model.forward_features(images)"
    (folder / "README.md").write_text(
        f"`model = timm.create_model('local-dir:{name}', pretrained=True).eval()`; its features are `{call}`.\n"
        f"The encoder of a MaskZoo run: {story(trained)}.\n",
        encoding="utf-8",
    )
    if names:
        said += write_classes(folder, name, names)
    return [f"timm.create_model('local-dir:{name}', pretrained=True) has it", *said]


def with_classifier(trained: Trained, images: Tensor) -> tuple[Any, list[str]]:
    """The timm model of a run, with the run's classifier as its head if timm would compute the same; and a sentence."""
    backbone, objective = trained.backbone, trained.objective
    with torch.no_grad(), evaluating(objective):
        expected: Tensor | None = objective.predict(images)
        latent = backbone(images).float()
    head = getattr(objective, "head", None)
    if expected is not None and isinstance(head, nn.Linear):
        pooling = POOLINGS[objective.pooling]
        for options in headed(pooling, head.out_features):
            model = rebuilt(backbone, options)
            classifier = None if model is None else model.get_classifier()
            if model is None or not isinstance(classifier, nn.Linear) or classifier.weight.shape != head.weight.shape:
                continue
            classifier.load_state_dict(head.state_dict())
            with torch.no_grad():
                if close(model(images).float(), expected):
                    return model, [f"the classifier is in it, behind timm's pooling '{pooling}'"]
    for options in headless():
        model = rebuilt(backbone, options)
        with torch.no_grad():
            if model is not None and close(features(model, images, backbone.prefix), latent):
                break
    else:
        model = backbone.model
    if expected is None:
        return model, []
    return model, ["the classifier is left out: timm pools otherwise in front of it"]


def headed(pooling: str, classes: int) -> Iterator[dict[str, Any]]:
    """Options of timm under which a classifier may be what ours is: the norm before the pooling, if there is one."""
    for norm in ({"fc_norm": False}, {"use_fc_norm": False}, {}):
        for pool in ({"global_pool": pooling}, {}):
            yield {"num_classes": classes, **norm, **pool}


def headless() -> Iterator[dict[str, Any]]:
    """Options of timm under which our latent is its features, and a classifier that is put on top gets one vector."""
    yield from headed("avg", 0)
    yield {}
    yield {"global_pool": "token"}  # a BEiT whose norm was put before pooling


def rebuilt(backbone: Any, options: Mapping[str, Any]) -> Any | None:
    """The timm model of a backbone with other options and the same weights; None where it takes no such options."""
    arguments = {**getattr(backbone.model, "_model_args", {}), **options}
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(backbone.timm.split(".")[0], pretrained=False, **arguments).eval()
        lacking, extra = model.load_state_dict(backbone.model.state_dict(), strict=False)
    except (TypeError, AssertionError, ValueError, RuntimeError):
        return None
    classifier = model.get_classifier()
    own = {name for name, part in model.named_modules() if part is classifier}
    if extra or any(name.rsplit(".", 1)[0] not in own for name in lacking):
        return None
    return model


def features(model: Any, images: Tensor, prefix: int) -> Tensor:
    """What timm makes of whole images, in the order of our latent [B, P + N, D]."""
    made: Tensor = model.forward_features(images)
    if ends_in_head(model):
        made = model.head.norm(made)
    if made.ndim == 4 and prefix == 0:
        made = made.flatten(2).transpose(1, 2) if made.shape[1] == model.num_features else made.flatten(1, 2)
    return made.float()


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two computations of the same agree."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def ends_in_head(model: Any) -> bool:
    """Whether the norm that ends our latent is part of timm's head."""
    return isinstance(model, timm.models.hiera.Hiera)


def correct(config: Path, statistics: Mapping[str, list[float]], names: Sequence[str], keep: tuple[str, ...]) -> None:
    """Take out of timm's config what is not known of these weights, or was said of timm's own; name the outputs."""
    plain = read_json(config)
    wrong = [name for name in NOT_OURS if name not in keep] + ([] if statistics else ["mean", "std"])
    wrong += ["label_names", "label_descriptions"]  # of the classes that timm's own weights have learned
    plain["pretrained_cfg"] = {name: value for name, value in plain["pretrained_cfg"].items() if name not in wrong}
    if names:
        plain["label_names"] = [written(name) for name in names]
    config.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------------------- safetensors
def to_safetensors(trained: Trained, folder: Path, name: Path, statistics: Mapping[str, list[float]]) -> list[str]:
    """Write the encoder's weights, under timm's names where it is a timm model, and what it takes to build it."""
    backbone = trained.backbone
    inner = backbone.model if isinstance(backbone, TimmBackbone) else backbone
    weights = {key: value.detach().clone().contiguous() for key, value in inner.state_dict().items()}
    save_file(weights, folder / "encoder.safetensors", metadata={"format": "pt"})
    config = {"backbone": describe(backbone), **statistics, "maskzoo": maskzoo.__version__}
    if names := names_of(trained)[0]:
        config["label_names"] = [written(one) for one in names]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(
        f"`maskzoo train --weights {name}/encoder.safetensors` starts from it; "
        f"`safetensors.torch.load_file('{name}/encoder.safetensors')` reads it.\n"
        f"The encoder of a MaskZoo run: {story(trained)}.\n",
        encoding="utf-8",
    )
    return [f"'{name / 'encoder.safetensors'}' holds {len(weights)} tensors, config.json how to build the encoder"]


def story(trained: Trained) -> str:
    """How the weights came to be, in a few words."""
    recipe: Any = describe(trained.recipe)
    data, masking = recipe["data"], recipe["masking"]["strategy"]
    used = (use if isinstance(use, str) else use["use"] for use in (recipe["objective"], masking, data))
    return "objective {}, masker {}, data {}, ".format(*used) + f"step {trained.step}"
