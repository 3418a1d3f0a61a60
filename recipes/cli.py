"""Commands about recipes: finetune, evaluate, predict, migrate. Nothing here imports torch until a command runs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hotswap.cli import completion, early, options, output
from hotswap.errors import HotswapError
from recipes import dependencies

if TYPE_CHECKING:
    from recipes.config import Recipe

_recipe = click.argument("recipe", shell_complete=completion.files)
_overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change the recipe, e.g. optimiser.lr=1e-4 or swaps.0.guide=input. Repeat for more.",
)
_arm = click.option("--arm", metavar="NAME", help="Which arm of the recipe. Default: the last.")


def _checkpoint(text: str, *, required: bool = False) -> Callable[[options.Command], options.Command]:
    return click.option("--checkpoint", metavar="FILE", shell_complete=completion.files, required=required, help=text)


def _folder(text: str, *, required: bool = False) -> Callable[[options.Command], options.Command]:
    return click.option(
        "--output-dir", "folder", metavar="DIR", shell_complete=completion.folders, required=required, help=text
    )


@options.command(
    "hotswap finetune quickstart --output-dir out/quickstart",
    "hotswap finetune my.yaml --set optimiser.lr=1e-4 --set steps=2000 --output-dir runs/my",
    "hotswap finetune my.yaml --output-dir runs/my --resume",
    "accelerate launch -m recipes finetune my.yaml --output-dir runs/my",
)
@_recipe
@_overrides
@_folder("Where to. Default: runs/ and the recipe's name.")
@click.option("--resume", is_flag=True, help="Go on with what is in the folder.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop after so many steps in all; --resume goes on.")
def finetune(
    recipe: str,
    overrides: tuple[str, ...],
    folder: str | None,
    resume: bool,
    max_steps: int | None,
    as_json: bool,
) -> None:
    """Carry out a recipe: swap, train, measure, save.

    RECIPE is a YAML file, or the name of a recipe of the package, such as quickstart. The folder then holds, for each
    arm, last.safetensors, best.safetensors, result.json and state.pt, from which --resume goes on exactly.
    """
    dependencies.check_installed()
    from recipes import reading

    arms = reading.read(recipe, overrides)  # before the imports that take seconds

    from rich.console import Console

    from recipes import engine, results
    from recipes.checkpointing import RESULT
    from recipes.comparison import draw_comparison

    out = Path(folder or Path("runs") / Path(recipe).stem)
    console = None if output.is_quiet() else Console(stderr=True)
    for chosen in () if resume else arms.values():
        _tell_differences(chosen, chosen.model.checkpoint)
    try:
        result = engine.finetune(arms, out, resume=resume, max_steps=max_steps, console=console)
    except KeyboardInterrupt:
        raise HotswapError(f"stopped; what was saved is in {out}, and --resume goes on with it") from None
    if not engine.is_main_process():
        return
    picture = draw_comparison(arms, out)
    if as_json:
        output.show_json(result)
    else:
        output.say(results.table(result))
    output.wrote(str(picture))
    for arm in arms:
        output.wrote(str(out / arm / RESULT))


@options.command("hotswap evaluate my.yaml --checkpoint runs/my/best.safetensors")
@_recipe
@_overrides
@_checkpoint("Of the recipe's network. Default: what a run would start with.")
@_arm
def evaluate(recipe: str, overrides: tuple[str, ...], checkpoint: str | None, arm: str | None, as_json: bool) -> None:
    """Measure a network on the validation data of a recipe."""
    dependencies.check_installed()
    from recipes import reading

    chosen = reading.arm(reading.read(recipe, overrides), arm)
    early.check(checkpoint=checkpoint)

    from recipes import engine

    _tell_differences(chosen, checkpoint)
    metrics = engine.evaluate(chosen, checkpoint)
    if engine.is_main_process():
        if as_json:
            output.show_json(metrics)
        else:
            output.say("\n".join(f"{k} {v:.4f}" for k, v in metrics.items()))


@options.command(
    "hotswap predict my.yaml --checkpoint runs/my/best.safetensors --images photos --output-dir out",
)
@_recipe
@_overrides
@_checkpoint("Of the recipe's network.", required=True)
@_arm
@options.images("Folder of images. Default: the recipe's validation data, with truth.", required=False)
@_folder("Where to.", required=True)
@options.limit()
def predict(
    recipe: str,
    overrides: tuple[str, ...],
    checkpoint: str,
    arm: str | None,
    images: str | None,
    folder: str,
    limit: int,
    as_json: bool,
) -> None:
    """Draw what a network makes of images: side by side with the input, and for a swapped one with its plain self.

    For each image, NAME.png is the page and NAME_prediction.png the map alone, labels with the VOC palette.
    """
    dependencies.check_installed()
    from recipes import reading

    chosen = reading.arm(reading.read(recipe, overrides), arm)
    early.check(checkpoint=checkpoint, images=images)

    from recipes.comparison import draw_predictions

    _tell_differences(chosen, checkpoint)
    files = []
    for path in draw_predictions(chosen, checkpoint, images, Path(folder), limit):
        output.wrote(str(path))
        files.append(str(path))
    if as_json:
        output.show_json({"files": files})


def _tell_differences(recipe: "Recipe", checkpoint: str | None) -> None:
    """Say where a checkpoint is not of what the recipe makes of it."""
    from recipes import agreement
    from recipes.config import EARLIER

    if checkpoint is not None and not checkpoint.startswith(EARLIER):
        for told in agreement.differences(recipe, checkpoint):
            output.note(told)


@options.command(
    "hotswap migrate x8_pac_weights_epoch_5000.pth -o pac_x8.safetensors",
    "hotswap migrate weights_epoch_30.pth --model fcn8s_crfi5p4d5641p4d5161 -o paccrf.safetensors",
)
@click.argument("checkpoint", shell_complete=completion.files)
@options.output
@click.option(
    "--model",
    metavar="NAME",
    help="What the published code's --model was, such as fcn8spac_crfi5p4d5641p4d5161. Of FCN-8s and what is made "
    "from it the weights do not tell.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of our network, in place of what was told, e.g. blur=2 or dilations=[32]. Repeat for more.",
)
def migrate(checkpoint: str, path: str, model: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Bring a checkpoint of the published code of PAC to one of ours, which evaluate and predict take.

    The network is told by names and shapes of the weights: joint upsampling (PAC, lite, DJIF), FCN-8s, PAC-FCN, with
    and without a CRF. Weights of transposed layers are mirrored, those of colours turned round. No code in the file
    is run.
    """
    dependencies.check_installed()
    early.check(checkpoint=checkpoint)
    early.check_other_file(path, checkpoint)
    from recipes import reading

    chosen = dict(map(reading.assignment, overrides))

    from recipes.published import migration

    with output.busy("migrating"):
        done = migration.migrate(checkpoint, path, model=model, options=chosen)
    output.show(done, as_json=as_json, output=path)
    output.wrote(path)


COMMANDS: tuple[click.Command, ...] = (finetune, evaluate, predict, migrate)
