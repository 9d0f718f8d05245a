"""The exceptions that stand for a user's mistake, and what they quote of others."""


class UserError(Exception):
    """Something the user can fix: a wrong flag, a missing file, a damaged checkpoint, bad annotations.

    Its message says what is wrong, where, what was expected and what to do. Entry scripts print that message
    without a stack trace and end with exit code 1; every other exception is a bug and keeps its trace.
    """


class ConfigError(UserError):
    """A configuration that cannot be used: a wrong key, type, value or file."""


def first_line(error: BaseException) -> str:
    """What another exception says, without its call stack: MindSpore's messages hold one after the first line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
