"""One line for the user: what went wrong, where, what to do next. The command line turns it into exit code 2."""


class UserError(Exception):
    """The user's mistake or their machine's state; `str(error)` is one line and names the next step."""

    def __init__(self, message: str) -> None:
        printable = "".join(c if c.isprintable() else " " for c in message)  # names and keys may hold anything
        super().__init__(" ".join(printable.split()))


LONGEST = 320


def one_line(error: BaseException) -> str:
    """An error of another library in one line; of a long one both ends, as the cause may stand at either."""
    text = " ".join(str(error).split()) or type(error).__name__
    half = (LONGEST - 5) // 2
    return text if len(text) <= LONGEST else f"{text[:half]} […] {text[-half:]}"
