"""`python -m recipes`, for `accelerate launch -m recipes`: the `hotswap` command."""

from hotswap.cli import main
from recipes.cli import COMMANDS

for command in COMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="hotswap")
