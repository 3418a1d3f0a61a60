"""A pretrained network swapped, checked, fine-tuned, saved, loaded and reverted, with pictures of every step.

    python -m examples.tour

No GPU, and no download: the weights and the pictures are files of installed packages.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import torch
from rich.table import Table
from torch import Tensor, nn

import hotswap
from examples.checks import check, console, save_load_revert, show
from examples.hed import HedSegmenter, load_hed, load_segmenter
from examples.pictures import capture_kernel, difference, kernel_sheet, photograph
from hotswap.colours import Pixels
from recipes.finetune import evaluate, finetune
from recipes.landwater import LandWater
from recipes.pictures import Panel, pixels, sheet

TARGETS = ["conv3_3", "conv4_3", "conv5_3"]  # the paper's choice: the last convolution of each late stage,
GUIDE = "conv2_2"  # guided by an early activation
DEVIATION = 0.3  # what calibration aims at: neighbours count 30 % less than in the plain network, on average

# scikit-image's photographs, and the pixels (row, column) of each whose adapting kernel is drawn.
PHOTOS = {
    "astronaut": [(60, 335), (190, 240), (90, 60), (430, 490)],
    "coffee": [(60, 180), (140, 260), (270, 95), (330, 345)],
    "chelsea": [(110, 140), (150, 230), (135, 318), (240, 262)],
}


@click.command()
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default="out", help="Folder for the results."
)
@click.option("--steps", type=click.IntRange(min=1), default=30, help="Steps of each fine-tuning.")
def main(out: Path, steps: int) -> None:
    """Show all of hotswap on an edge detector and a segmentation network; `make demo` is the short of it."""
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    photos = {name: photograph(name) for name in PHOTOS}

    console.rule("[bold]1. A trained network: HED, an edge detector on VGG16")
    hed = load_hed()
    show(hotswap.inspect(hed))

    console.rule("[bold]2. Swap three convolutions, at the paper's guide scale")
    show(hotswap.plan(hed, TARGETS, GUIDE))
    swapped = hotswap.convert(hed, TARGETS, GUIDE)
    check(hotswap.status(hed).plan is None, "the network it was made from is as it was")
    show(hotswap.verify(swapped, photos.values()))

    console.rule("[bold]3. The same swap, with guide scales calibrated on the photographs")
    calibrated = hotswap.convert(hed, TARGETS, GUIDE)
    show(hotswap.calibrate(calibrated, photos.values(), deviation=DEVIATION))
    show(hotswap.verify(calibrated, photos.values()))

    console.rule("[bold]4. Its enlargements guided by the image, no convolution swapped")
    # All of them: "resize" leaves them to its finest side output, which they are mixed with.
    guided = hotswap.convert(hed, "resize_*", "input", calibrate_on=list(photos.values()))
    show(hotswap.status(guided))
    check(guided.state_dict().keys() == hed.state_dict().keys(), "no parameters were added")

    console.rule("[bold]5. Pictures of what changed, and of which neighbours count")
    drawn = draw_photos(out, photos, hed, swapped, calibrated, guided)
    console.print(f"{len(drawn)} pictures")
    written = drawn

    console.rule("[bold]6. Fine-tune plain and swapped: land and water in satellite pictures")
    plain, tuned, picture = tune_both(out, steps)
    written.append(picture)

    console.rule("[bold]7. Save, load, revert")
    written.append(save_load_revert(out, plain, tuned, load_segmenter(), photos["coffee"]))

    console.rule("[bold]Done")
    console.print(f"in {time.perf_counter() - began:.0f} s; written:")
    for path in written:
        console.print(f"  {path}", soft_wrap=True)


def draw_photos(
    out: Path,
    photos: dict[str, Tensor],
    plain: nn.Module,
    swapped: nn.Module,
    calibrated: nn.Module,
    guided: nn.Module,
) -> list[Path]:
    """For each photograph, the edges found before and after the swap, and adapting kernels: the files written."""
    written = []
    for name, photo in photos.items():
        with torch.no_grad():
            before, after = plain(photo)[0], swapped(photo)[0]
            after_calibrated, after_guided = calibrated(photo)[0], guided(photo)[0]
        edges = sheet(
            f"{name}: edges found by HED, plain and with {', '.join(TARGETS)} swapped (guide {GUIDE})",
            [
                [
                    ("input", pixels(photo[0])),
                    ("swapped, the paper's guide scale 0.0001", pixels(after)),
                    difference_panel(before, after),
                ],
                [
                    ("plain", pixels(before)),
                    (f"swapped, calibrated to a deviation of {DEVIATION}", pixels(after_calibrated)),
                    difference_panel(before, after_calibrated),
                ],
                [
                    ("plain", pixels(before)),
                    ("enlargements guided by the image, no convolution swapped", pixels(after_guided)),
                    difference_panel(before, after_guided),
                ],
            ],
        )
        edges.save(out / f"{name}_edges.png")
        written += [out / f"{name}_edges.png", draw_kernels(out, name, photo, calibrated)]
    return written


def draw_kernels(out: Path, name: str, photo: Tensor, calibrated: nn.Module) -> Path:
    """Adapting kernels of some pixels of a photograph: the file written."""
    path, kernel = out / f"{name}_kernels.png", capture_kernel(calibrated, TARGETS[0], photo)[0]
    title = f"{name}: which neighbours count in {TARGETS[0]}, calibrated to a deviation of {DEVIATION}"
    kernel_sheet(title, photo[0], kernel, PHOTOS[name]).save(path)
    return path


def difference_panel(before: Tensor, after: Tensor) -> Panel:
    """The amplified difference of two edge maps, with the factor in its caption."""
    picture, gain = difference(before, after)
    return f"difference x {gain} (red: more, blue: less)", picture


def tune_both(out: Path, steps: int) -> tuple[HedSegmenter, HedSegmenter, Path]:
    """Fine-tune a plain, a swapped and a guided network from the same start, on the same data in the same order.

    Returns:
        The first two, and the picture of all predictions.
    """
    train, test = LandWater("train"), LandWater("test", 48)
    console.print(f"{len(train)} training crops; {len(test)} test crops from other longitudes; 128 x 128 pixels")
    plain = load_segmenter(classes=2)
    set_trainable(plain, lambda name: name.startswith("score"))
    finetune(plain, train, steps=40, lr=3e-4, label="score layers", console=console)
    set_trainable(plain, lambda _: True)

    targets = TARGETS[1:]  # conv4_3 and conv5_3
    samples = torch.stack([train[i][0] for i in range(16)])
    swapped = hotswap.convert(plain, targets, GUIDE, example_inputs=samples[:1])
    show(hotswap.calibrate(swapped, samples, deviation=DEVIATION))

    guided = hotswap.convert(plain, "resize", "input", calibrate_on=samples, learn_scale=True)
    show(hotswap.status(guided))

    table = Table("network", "mIoU before tuning", f"after {steps} steps", "loss, last 10 steps")
    networks = {"plain": plain, "swapped": swapped, "last enlargement guided": guided}
    for name, network in networks.items():
        before = evaluate(network, test)
        losses = finetune(network, train, steps=steps, lr=1e-4, seed=1, label=name, console=console)
        after = evaluate(network, test)
        last = losses[-10:]
        table.add_row(name, f"{before:.4f}", f"{after:.4f}", f"{sum(last) / len(last):.4f}")
    console.print(table)
    console.print("One seed and a short run: small differences between these scores prove nothing either way.")

    picture = out / "landwater.png"
    rows = [prediction_row(*test[i], networks) for i in range(3)]
    sheet("Land and water: three test crops after fine-tuning", rows, width=300).save(picture)
    return plain, swapped, picture


def set_trainable(model: nn.Module, wanted: Callable[[str], bool]) -> None:
    """Let only the parameters whose name is wanted be trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted(name))


def prediction_row(image: Tensor, labels: Tensor, networks: Mapping[str, nn.Module]) -> list[Panel]:
    """A crop, its truth, and what each network makes of it."""

    def panel(name: str, model: nn.Module) -> Panel:
        with torch.no_grad():
            found = model(image[None])[0].argmax(dim=0)
        right = (found == labels).float().mean().item()
        return f"{name}: {right:.1%} right, errors red", paint(found, labels)

    return [
        ("input", pixels(image)),
        ("truth: land light, water dark", paint(labels, labels)),
        *(panel(name, model) for name, model in networks.items()),
    ]


def paint(found: Tensor, truth: Tensor) -> Pixels:
    """Classes [H, W] as colours: land light, water dark, and red where they are not the truth."""
    colours = torch.tensor([[0.12, 0.22, 0.42], [0.87, 0.83, 0.70]])[found]
    colours[found != truth] = torch.tensor([0.86, 0.15, 0.15])
    return pixels(colours.permute(2, 0, 1))


if __name__ == "__main__":
    main()
