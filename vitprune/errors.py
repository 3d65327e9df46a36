"""One line for the user: what went wrong, where, what to do next. The command line turns it into exit code 2."""


class UserError(Exception):
    """The user's mistake or their machine's state; `str(error)` is one line and names the next step."""
