"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """Something the user can mend: a wrong flag, a missing file, a damaged checkpoint, bad annotations.

    Its text says what is wrong, where, what was expected and what to do. Entry scripts print that text
    without a stack trace and end with exit code 1; every other exception is a bug and keeps its trace.
    """
