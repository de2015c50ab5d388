"""Measure a training step of MaskZoo, lightly's MAE and Hugging Face's ViTMAE, of the same sizes on one machine.

python benchmarks/step.py --size 32 --steps 5 --json step.json

docs/performance.md says what the columns mean. Shapes: B images, N patches, P prefix tokens, D channels.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from maskzoo import Recipe, Registry
from maskzoo.build import build
from maskzoo.cost import Shape, flop_counter
from maskzoo.engine import keep_memory
from maskzoo.memory import resident
from maskzoo.protocols import Batch
from maskzoo.train import train

WARM_UP = (
    2  # steps before the clock runs: the optimizer's averages are made in the first, memory is known in the second
)
LONGEST_MULTIPLICATION = 1.5  # seconds; larger matrices are not tried
LARGEST_MATRIX = 8192  # rows
RATIO = 0.75  # hidden share
LR, BETAS, WEIGHT_DECAY = 1.5e-4, (0.9, 0.95), 0.05
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PACKAGES = {"lightly-mae": "lightly", "hf-mae": "transformers"}  # what a contender needs beyond MaskZoo
MEBIBYTE = 2**20


@attrs.frozen
class Size:
    """How large the images and the models are."""

    pixels: int
    patch: int
    width: int
    depth: int
    heads: int
    batch: int
    decoder_dim: int
    decoder_depth: int

    @property
    def decoder_heads(self) -> int:
        """One for each 32 channels, which is MaskZoo's own choice."""
        return max(1, self.decoder_dim // 32)

    def images(self, device: torch.device) -> Tensor:
        """[B, 3, pixels, pixels]: the batch that every contender gets."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, 3, self.pixels, self.pixels, generator=generator).to(device)


SIZES = {
    224: Size(pixels=224, patch=16, width=384, depth=12, heads=6, batch=32, decoder_dim=256, decoder_depth=4),
    32: Size(pixels=32, patch=4, width=192, depth=12, heads=3, batch=256, decoder_dim=128, decoder_depth=4),
}
TINY = Size(pixels=16, patch=4, width=24, depth=2, heads=2, batch=2, decoder_dim=16, decoder_depth=1)


@attrs.frozen
class Setting:
    """How all contenders of one race compute."""

    device: torch.device
    precision: str = "fp32"
    compiled: bool = False

    def autocast(self) -> torch.autocast:
        """What a training script writes around its forward pass."""
        return torch.autocast(self.device.type, TYPES[self.precision], enabled=self.precision != "fp32")


# --------------------------------------------------------------------------------------------------------- contenders
def maskzoo_mae(size: Size, setting: Setting) -> Iterator[Any]:
    """MaskZoo's own loop with random masks: MAE."""
    return _maskzoo("random", size, setting)


def maskzoo_clmae(size: Size, setting: Setting) -> Iterator[Any]:
    """MaskZoo's own loop with CL-MAE: the model's update and the masker's."""
    return _maskzoo("clmae", size, setting)


def _maskzoo(strategy: str, size: Size, setting: Setting) -> Iterator[Any]:
    dataset: Any = Shape((size.pixels, size.pixels))
    session = build(_recipe(strategy, size, setting), dataset, Registry(), steps_in_epoch=1)
    images = size.images(setting.device)
    batch = Batch(images, None, torch.arange(size.batch, device=setting.device))
    return iter(train(session, itertools.repeat(batch)))


def _recipe(strategy: str, size: Size, setting: Setting) -> Recipe:
    options = {"embed_dim": size.width, "depth": size.depth, "num_heads": size.heads}
    plain = {
        "backbone": {
            "timm": "vit_small_patch16_224",
            "patch_size": size.patch,
            "position": "sin-cos",
            "options": options,
        },
        "objective": {
            "use": "reconstruct",
            "decoder_dim": size.decoder_dim,
            "decoder_depth": size.decoder_depth,
            "decoder_heads": size.decoder_heads,
            "target": "norm_pixels",
        },
        "masking": {"strategy": strategy, "ratio": RATIO},
        "optimizer": {"use": "adamw", "lr": LR, "betas": list(BETAS), "weight_decay": WEIGHT_DECAY},
        "train": {
            "steps": 10_000,
            "batch_size": size.batch,
            "device": str(setting.device),
            "precision": setting.precision,
            "compile": setting.compiled,
        },
    }
    return Recipe.from_plain(plain)


def lightly_mae(size: Size, setting: Setting) -> Iterator[Any]:
    """MAE as lightly's documentation trains it, with the target normalised by patch."""
    from lightly.models import utils
    from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    class LightlyMAE(nn.Module):
        """The class that lightly's example asks its user to write."""

        def __init__(self) -> None:
            super().__init__()
            vit = VisionTransformer(
                img_size=size.pixels,
                patch_size=size.patch,
                embed_dim=size.width,
                depth=size.depth,
                num_heads=size.heads,
                num_classes=0,
            )
            self.backbone = MaskedVisionTransformerTIMM(vit=vit)
            self.length = self.backbone.sequence_length
            self.decoder_embed = nn.Linear(vit.embed_dim, size.decoder_dim)
            self.decoder = MaskedVisionTransformerDecoderTIMM(
                num_patches=vit.patch_embed.num_patches,
                embed_dim=size.decoder_dim,
                depth=size.decoder_depth,
                num_heads=size.decoder_heads,
                num_prefix_tokens=vit.num_prefix_tokens,
            )
            self.head = nn.Linear(size.decoder_dim, 3 * size.patch**2)
            self.criterion = nn.MSELoss()

        def forward(self, images: Tensor) -> Tensor:
            kept, masked = utils.random_token_mask((len(images), self.length), RATIO, device=images.device)
            encoded = self.decoder_embed(self.backbone.encode(images, idx_keep=kept))
            whole = encoded.new_zeros(len(images), self.length, encoded.shape[-1])
            whole = utils.set_at_index(whole, kept, encoded.type_as(whole))
            decoded = self.decoder(whole, idx_mask=masked)
            predicted = self.head(utils.get_at_index(decoded, masked))
            target = utils.get_at_index(utils.patchify(images, size.patch), masked - 1)  # without the class token
            loss: Tensor = self.criterion(predicted, utils.normalize_mean_var(target))
            return loss

    return _plain_loop(LightlyMAE().to(setting.device), size, setting)


def hf_mae(size: Size, setting: Setting) -> Iterator[Any]:
    """MAE as the documentation of Hugging Face's transformers trains it."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    class Loss(nn.Module):
        """The model, giving its loss alone."""

        def __init__(self) -> None:
            super().__init__()
            config = ViTMAEConfig(
                image_size=size.pixels,
                patch_size=size.patch,
                hidden_size=size.width,
                num_hidden_layers=size.depth,
                num_attention_heads=size.heads,
                intermediate_size=4 * size.width,
                decoder_hidden_size=size.decoder_dim,
                decoder_num_hidden_layers=size.decoder_depth,
                decoder_num_attention_heads=size.decoder_heads,
                decoder_intermediate_size=4 * size.decoder_dim,
                mask_ratio=RATIO,
                norm_pix_loss=True,
                attn_implementation="sdpa",
            )
            self.model = ViTMAEForPreTraining(config)

        def forward(self, images: Tensor) -> Tensor:
            loss: Tensor = self.model(pixel_values=images).loss
            return loss

    return _plain_loop(Loss().to(setting.device), size, setting)


def _plain_loop(model: nn.Module, size: Size, setting: Setting) -> Iterator[Any]:
    """The loop of the rivals' examples: forward, backward, AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY)
    if setting.compiled:
        model.compile()
    images = size.images(setting.device)
    while True:
        with setting.autocast():
            loss = model(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


Contender = Callable[[Size, Setting], Iterator[Any]]
CONTENDERS: Mapping[str, Contender] = {
    "maskzoo-mae": maskzoo_mae,
    "maskzoo-clmae": maskzoo_clmae,
    "lightly-mae": lightly_mae,
    "hf-mae": hf_mae,
}


def present(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those of the contenders that are installed, and a sentence for each that is not."""
    missing = {name: package for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None}
    names = list(names)
    sentences = [
        f"{name} is left out: {missing[name]} is not installed; pip install 'maskzoo[bench]' brings it."
        for name in names
        if name in missing
    ]
    return [name for name in names if name not in missing], sentences


# ------------------------------------------------------------------------------------------- the rate of the machine
@attrs.frozen
class Rate:
    """The best multiplication of two square matrices that was found."""

    rows: int
    seconds: float

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each of rows^3 products."""
        return 2 * self.rows**3

    @property
    def flops_per_second(self) -> float:
        """What everything else is measured against."""
        return self.flops / self.seconds


def best_rate(setting: Setting) -> Rate:
    """Multiply ever larger matrices, for as long as that does not take too long, and keep the best rate."""
    best: Rate | None = None
    rows = 256
    while True:
        multiplication = multiplications(rows, setting)
        seconds = min(timed(multiplication, setting.device) for _ in range(3))
        if best is None or 2 * rows**3 / seconds > best.flops_per_second:
            best = Rate(rows, seconds)
        if rows >= LARGEST_MATRIX or 8 * seconds > LONGEST_MULTIPLICATION:
            return best
        rows *= 2


def multiplications(rows: int, setting: Setting) -> Iterator[None]:
    """The same multiplication of two square matrices, again and again."""
    dtype = TYPES[setting.precision]
    left, right = (torch.randn(rows, rows, device=setting.device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    while True:
        torch.mm(left, right, out=product)
        yield


def has_hardware(precision: str, rates: Mapping[str, Rate]) -> bool:
    """Whether a precision is at least as fast as fp32, without which nobody would train in it."""
    return rates[precision].flops_per_second >= rates["fp32"].flops_per_second


# -------------------------------------------------------------------------------------------------------- measurement
@attrs.frozen
class Need:
    """What a step takes beside time."""

    flops: int  # forward and backward
    peak_bytes: int  # of the weights, gradients, optimizer and activations together


def needs(name: str, size: Size, setting: Setting) -> Need:
    """FLOPs and peak memory of a contender's step, seen from this process."""
    memory = Memory(setting.device)
    steps = CONTENDERS[name](size, setting)
    for _ in range(WARM_UP):
        next(steps)
    peak = memory.peak()
    if setting.compiled:  # the counter sees what Python calls, not what a compiler made of it
        del steps
        steps = CONTENDERS[name](size, attrs.evolve(setting, compiled=False))
    return Need(flops_of(steps), peak)


def needs_apart(name: str, size: Size, setting: Setting) -> Need:
    """The same from a process of its own, since the peak of a process knows only one contender."""
    plain = {"name": name, "size": attrs.asdict(size), **attrs.asdict(setting), "device": str(setting.device)}
    command = [sys.executable, str(Path(__file__).resolve()), "--needs-of", json.dumps(plain)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")
    return Need(**json.loads(done.stdout.splitlines()[-1]))


def answer_needs(question: str) -> str:
    """What `needs_apart` asks of the other process, after a tiny run that loads libraries and starts threads."""
    plain = json.loads(question)
    name, size = plain.pop("name"), Size(**plain.pop("size"))
    setting = Setting(**{**plain, "device": torch.device(plain["device"])})
    tiny = CONTENDERS[name](TINY, attrs.evolve(setting, compiled=False))
    next(tiny)
    del tiny
    return json.dumps(attrs.asdict(needs(name, size, setting)))


class Memory:
    """How much memory comes on top of what is taken when this is made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type != "cpu":
            torch.get_device_module(device).reset_peak_memory_stats()
        self.before = self._now()

    def peak(self) -> int:
        """Bytes at the worst moment since then."""
        if self.device.type != "cpu":
            return int(torch.get_device_module(self.device).max_memory_allocated()) - self.before
        return max(0, resident(peak=True) - self.before)

    def _now(self) -> int:
        if self.device.type != "cpu":
            return int(torch.get_device_module(self.device).memory_allocated())
        return resident(peak=False)


def flops_of(steps: Iterator[Any]) -> int:
    """FLOPs of the next step as torch counts them: those of matrix products, convolutions and attention."""
    with flop_counter() as counter:
        next(steps)
    return int(counter.get_total_flops())


def timed(steps: Iterator[Any], device: torch.device) -> float:
    """Seconds of the next step, from a device that is idle to one that is idle again."""
    _wait(device)
    begun = time.perf_counter()
    next(steps)
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def race(contenders: Mapping[str, Iterator[Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each contender's steps, taken in turns so that a busy moment of the machine hurts all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(WARM_UP + rounds):
        for name, steps in contenders.items():
            taken = timed(steps, device)
            if number >= WARM_UP:
                seconds[name].append(taken)
    return seconds


def measure(
    names: Sequence[str],
    size: Size,
    setting: Setting,
    rate: Rate,
    rounds: int,
    ask: Callable[[str, Size, Setting], Need] = needs_apart,
) -> list[dict[str, Any]]:
    """One row for the multiplication of matrices and one for each contender, all timed in turns."""
    known = {name: ask(name, size, setting) for name in names}
    contenders = {name: CONTENDERS[name](size, setting) for name in names}
    seconds = race({"matmul": multiplications(rate.rows, setting), **contenders}, rounds, setting.device)
    rate = attrs.evolve(rate, seconds=min([rate.seconds, *seconds["matmul"]]))
    rows = [matmul_row(rate, size, setting, seconds["matmul"])]
    rows += [row(name, size, setting, seconds[name], known[name], rate) for name in names]
    return rows


def row(name: str, size: Size, setting: Setting, seconds: Sequence[float], need: Need, rate: Rate) -> dict[str, Any]:
    """A contender's figures as they are written; `seconds` is the fastest step, and `share` is of that."""
    fastest = min(seconds)
    return {
        "name": name,
        "size": size.pixels,
        "precision": setting.precision,
        "seconds": fastest,
        "median_seconds": statistics.median(seconds),
        "images_per_second": size.batch / fastest,
        "flops": need.flops,
        "share": need.flops / fastest / rate.flops_per_second,
        "peak_bytes": need.peak_bytes,
        "batch": size.batch,
        "compiled": setting.compiled,
        "device": device_name(setting.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def matmul_row(rate: Rate, size: Size, setting: Setting, seconds: Sequence[float] = ()) -> dict[str, Any]:
    """The multiplication's own row: it is what the shares are of, and processes no images."""
    held = 3 * rate.rows**2 * TYPES[setting.precision].itemsize
    made = row("matmul", size, setting, [rate.seconds], Need(rate.flops, held), rate)
    return {
        **made,
        "median_seconds": statistics.median(seconds or [rate.seconds]),
        "images_per_second": None,
        "rows": rate.rows,
        "flops_per_second": rate.flops_per_second,
    }


# ------------------------------------------------------------------------------------------------------------- output
def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The figures of one race, to be read."""
    table = Table(box=SIMPLE, title=f"{rows[0]['size']} pixels, batch {rows[0]['batch']}, {rows[0]['precision']}")
    table.add_column("step", no_wrap=True)
    for heading in ("seconds", "median", "images/s", "GFLOPs", "share", "peak MiB"):
        table.add_column(heading, justify="right")
    for one in rows:
        images = one["images_per_second"]
        table.add_row(
            one["name"],
            f"{one['seconds']:.3g}",
            f"{one['median_seconds']:.3g}",
            "" if images is None else f"{images:.1f}",
            f"{one['flops'] / 1e9:.4g}",
            f"{one['share']:.1%}",
            f"{one['peak_bytes'] / MEBIBYTE:.0f}",
        )
    return table


def price_of_learning(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What a step of CL-MAE costs in steps of MAE, if both were measured."""
    by_name = {one["name"]: one for one in rows}
    if not {"maskzoo-mae", "maskzoo-clmae"} <= set(by_name):
        return None
    mae, clmae = by_name["maskzoo-mae"], by_name["maskzoo-clmae"]
    seconds, flops = clmae["seconds"] / mae["seconds"], clmae["flops"] / mae["flops"]
    return f"clmae / mae: {seconds:.1f} x the time, {flops:.1f} x the FLOPs"


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    if device.type == "cpu" and information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return f"{device.type} {platform.machine()}"


def environment(names: Iterable[str]) -> str:
    """The versions that the figures belong to."""
    packages = ["maskzoo", "torch", "timm", *(PACKAGES[name] for name in names if name in PACKAGES)]
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    return ", ".join([f"python {platform.python_version()}", *versions])


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the accelerator, if torch has found one."""
    if name != "auto":
        return torch.device(name)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if accelerator is None else accelerator


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", choices=SIZES, default=list(SIZES), help="pixels a side")
    parser.add_argument("--precision", nargs="+", choices=TYPES, help="default: whatever the device has hardware for")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="these contenders")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each contender")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--compile", action="store_true", help="compile every contender")
    parser.add_argument("--usual-malloc", action="store_true", help="leave glibc's allocator as it is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--needs-of", help=argparse.SUPPRESS)  # how a process asks another
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for, print it, and write it down."""
    asked = arguments()
    if asked.needs_of:
        warnings.simplefilter("ignore")
        print(answer_needs(asked.needs_of))
        return
    console = Console(highlight=False, soft_wrap=True)
    device = choose_device(asked.device)
    if device.type == "cpu" and not asked.usual_malloc:
        keep_memory()  # of this process, so of all contenders alike
    names, sentences = present(asked.only)
    console.print(f"{device_name(device)}, {torch.get_num_threads()} threads; {environment(names)}")
    for sentence in sentences:
        console.print(sentence)

    settings = {precision: Setting(device, precision, asked.compile) for precision in TYPES}
    rates = {precision: best_rate(setting) for precision, setting in settings.items()}
    for precision, rate in rates.items():
        speed = f"{rate.flops_per_second / 1e9:.1f} GFLOP/s"
        console.print(f"{precision}: {speed} multiplying matrices of {rate.rows} rows")

    rows: list[dict[str, Any]] = []
    for precision, setting in settings.items():
        if precision not in (asked.precision or TYPES):
            continue
        if not (asked.precision or has_hardware(precision, rates)):
            console.print(f"{precision} steps are skipped: {precision} is slower than fp32 here.")
            rows += [matmul_row(rates[precision], SIZES[pixels], setting) for pixels in asked.size]
            continue
        for pixels in asked.size:
            measured = measure(names, SIZES[pixels], setting, rates[precision], asked.steps)
            rows += measured
            console.print(table_of(measured))
            price = price_of_learning(measured)
            if price:
                console.print(price)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
