"""One line for the user: what went wrong, where, what to do next. The command line turns it into exit code 2."""


class UserError(Exception):
    """The user's mistake or their machine's state; `str(error)` is one line and names the next step."""

    def __init__(self, message: str) -> None:
        printable = "".join(c if c.isprintable() else " " for c in message)  # names and keys may hold anything
        super().__init__(" ".join(printable.split()))
