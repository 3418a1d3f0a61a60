"""The one error hotswap raises for what a user can mend."""


class HotswapError(ValueError):
    """A request that cannot be carried out: one line that says what was asked, why not, and what would work.

    Raised before anything is changed or written.
    """
