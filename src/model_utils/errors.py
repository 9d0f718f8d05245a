"""The one exception that stands for a user's mistake, and what it quotes of others."""


class UserError(Exception):
    """Something the user can mend: a wrong flag, a missing file, a damaged checkpoint, bad annotations.

    Its text says what is wrong, where, what was expected and what to do. Entry scripts print that text
    without a stack trace and end with exit code 1; every other exception is a bug and keeps its trace.
    """


def first_line(error: BaseException) -> str:
    """What another exception says, without its call stack: MindSpore's texts hold one after the first line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
