"""The one error hotswap raises for what a user can mend, and others' errors in a line of it."""


class HotswapError(ValueError):
    """A request that cannot be carried out: one line that says what was asked, why not, and what would work.

    Raised before anything is changed or written.
    """


def one_line(error: BaseException, length: int = 200) -> str:
    """Another's error, to be quoted: its type and the start of its first line, at most so many characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:length]}" if lines else type(error).__name__
