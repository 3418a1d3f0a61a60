"""The one error hotswap raises for what a user can mend, and others' errors in a line of it."""

from collections.abc import Sequence

_LONGEST = 1200  # letters of a message: names and values in it can come from a file, and be as long as that


class HotswapError(ValueError):
    """A request that cannot be carried out: one line that says what was asked, why not, and what would work.

    Raised before anything is changed or written. What a message quotes, which may be from a file, cannot make it
    longer than a few lines of a terminal, nor steer that.
    """

    def __init__(self, message: str = "") -> None:
        text = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in message)
        super().__init__(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


def one_line(error: BaseException, length: int = 200) -> str:
    """Another's error, to be quoted: its type and the start of its first line, at most so many characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:length]}" if lines else type(error).__name__


def first_line(error: BaseException) -> str:
    """The start of the first line of another's error, to be quoted where its type says nothing."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0] if len(lines[0]) <= 200 else f"{lines[0][:200]}..."


def replaced(lost: Sequence[str]) -> str:
    """The message about targets, guides and activations whose modules are no longer those that were swapped."""
    names = ", ".join(lost)
    return (
        f"replaced since the swap: {names}; hotswap.revert the network, which makes what is left of the swap plain, "
        "and convert it anew"
    )
