"""Mistakes a user can make: shown as one line on the terminal, exit status 2, no traceback."""


class UserError(ValueError):
    """Something in the request is wrong; the message names it and says what to do."""


class UnreachableAmount(UserError):  # noqa: N818  (a mistake by its base)
    """So much cannot be pruned of this network, by these settings."""


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its name where it has none."""
    lines = str(error.args[0] if error.args else error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
