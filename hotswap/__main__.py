"""`python -m hotswap`: the `hotswap` command, where the folder of installed commands is not on the path."""

from hotswap.cli import main

if __name__ == "__main__":
    main(prog_name="hotswap")
