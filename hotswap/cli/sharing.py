"""Commands that share a network: push."""

from typing import Any

import click

from hotswap.cli import early, options, output
from hotswap.files import hub, shards


@click.command(
    epilog=options.examples(
        "hotswap push swapped.safetensors owner/name --private",
        "hotswap push swapped.pt owner/name --model mypackage.nets:segmenter --branch trial",
    )
)
@options.checkpoint_argument
@click.argument("repository")
@click.option("--private", is_flag=True, default=None, help="If the repository is created, make it private.")
@click.option("--branch", metavar="NAME", help="Where to put it; created where there is none. Default: main.")
@click.option("--message", metavar="TEXT", help="Of the commit.")
@options.max_shard_size
@options.own_model
@options.as_json
def push(
    checkpoint: str,
    repository: str,
    private: bool | None,
    branch: str | None,
    message: str | None,
    max_shard_size: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Put a checkpoint's network on the Hugging Face hub, in REPOSITORY, OWNER/NAME, as one commit.

    It is loaded again as hf-hub:OWNER/NAME, by every command that takes a checkpoint. Needs a token that may write:
    `hf auth login`, or HF_TOKEN.
    """
    early.check_checkpoint(checkpoint)
    early.check_network(model)
    hub.parse(f"{hub.PREFIX}{repository}" + ("" if branch is None else f"@{branch}"))
    if max_shard_size is not None:
        shards.parse_size(max_shard_size)

    from hotswap.checkpoint.push import push_to_hub
    from hotswap.cli import inputs

    loaded = inputs.load(checkpoint, model)
    chosen = {"message": message, "max_shard_size": max_shard_size}
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    address = push_to_hub(
        loaded.network, repository, architecture=loaded.architecture, private=private, branch=branch, **given
    )
    if as_json:
        output.show_json({"address": address})  # with the commit
    else:
        output.say(address)


COMMANDS: tuple[click.Command, ...] = (push,)
