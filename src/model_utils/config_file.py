"""Reading configuration files, and turning what a file or a flag says into the type of its field.

A file holds up to three YAML documents: values, help texts, allowed choices. YAML is read more strictly
than usual: a repeated key is refused, only True and False (true, false) are booleans, so that a class may be
called ``no``, and tags that would build Python objects are refused.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import math
import re
import reprlib
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from src.model_utils.errors import ConfigError
from src.model_utils.keys import AUTO, AUTO_KEYS

MAX_DOCUMENTS = 3
MAX_BYTES = 1 << 20  # the longest shipped file has 20 KB; a checkpoint given by mistake is told at once


@dataclass(frozen=True)
class ConfigFile:
    """One configuration file as read: nothing is converted or checked against the known keys yet."""

    path: Path
    values: Mapping[str, Any]
    help: Mapping[str, str]
    choices: Mapping[str, list]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a repeated key and takes only True and False for booleans."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # a list as key: refused by the base class
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_BOOLEAN_TAG = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOLEAN_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN_TAG, re.compile("^(?:True|true|False|false)$"), list("tTfF"))


def read_config_file(path: Path) -> ConfigFile:
    """Read the documents of one configuration file.

    Args:
        path (Path): the YAML file.

    Returns:
        ConfigFile: values, help texts and choices; the latter two are empty where the file has none.

    Raises:
        ConfigError: the file is missing, unreadable, empty, not YAML, or its documents are not mappings.
    """
    documents = _load_documents(path)
    if not documents or documents[0] in (None, {}):
        raise ConfigError(f"{path}: the configuration file is empty; expected lines 'key: value'.")
    if len(documents) > MAX_DOCUMENTS:
        raise ConfigError(
            f"{path}: {len(documents)} YAML documents; expected up to {MAX_DOCUMENTS} "
            "between lines '---': values, help texts, choices."
        )
    documents += [{}] * (MAX_DOCUMENTS - len(documents))
    values, help_texts, choices = (document if document is not None else {} for document in documents)
    for name, document in (("first", values), ("second", help_texts), ("third", choices)):
        if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
            raise ConfigError(f"{path}: the {name} YAML document is not a mapping; expected lines 'key: value'.")
    _check_kind(path, help_texts, str, "second YAML document holds help texts")
    _check_kind(path, choices, list, "third YAML document holds lists of choices")
    return ConfigFile(path=path, values=values, help=help_texts, choices=choices)


def _load_documents(path: Path) -> list[Any]:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; name another by --config_path.") from None
    except OSError as error:
        raise ConfigError(f"{path}: the configuration file cannot be read ({error.strerror}).") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes; is this a configuration file?")
    try:
        return list(yaml.load_all(content.decode("utf-8-sig"), Loader=_Loader))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8; is this a configuration file?") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: {error.problem}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError comes from strings that look like a date or number and are not
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from error


def _check_kind(path: Path, document: Mapping[str, Any], kind: type, meaning: str) -> None:
    for key, entry in document.items():
        if not isinstance(entry, kind):
            raise ConfigError(
                f"{path}: the {meaning}, but {key} is {reprlib.repr(entry)} there; "
                "values belong before the first '---'."
            )


def nearest(key: str, known: Iterable[str]) -> str:
    """A sentence naming the known key that looks most like ``key``, or an empty string."""
    matches = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]}?" if matches else ""


def convert(key: str, value: Any, kind: Any, source: str) -> Any:
    """Turn a value of a file into the type of its field.

    An integer serves as a float, and so does a string such as ``1e-4``, which YAML does not take for a number.
    Lists become tuples. Nothing else is converted: 2.0 is not an integer, 1 is not a boolean. "auto" stays as it is
    where the key may have it.

    Args:
        key (str): the key, for the error.
        value: what the YAML says.
        kind: bool, int, float, str, ``tuple[X, ...]`` of these, or a dataclass of these (a mapping in YAML).
        source (str): where the value stands, for the error.

    Returns:
        The value as ``kind``.

    Raises:
        ConfigError: naming the key, the value and the type that was expected.
    """
    if dataclasses.is_dataclass(kind):
        return _convert_mapping(key, value, kind, source)
    expected = _expectation(kind)
    if key.lstrip("-") in AUTO_KEYS:
        if value == AUTO:
            return AUTO
        expected += f", or {AUTO}"
    try:
        if typing.get_origin(kind) is not tuple:
            return _SCALARS[kind][0](value)
        if not isinstance(value, list | tuple):
            raise ValueError
        item = _SCALARS[typing.get_args(kind)[0]][0]
        return tuple(item(element) for element in value)
    except ValueError:
        raise ConfigError(f"{key} is {reprlib.repr(value)} (from {source}): expected {expected}.") from None


def parse_flag(key: str, text: str, kind: Any, source: str) -> Any:
    """Turn the string of a command-line flag into the type of its field.

    Args:
        key (str): the key, for the error.
        text (str): as given; lists and mappings as Python or YAML write them: ``['background','cat']``.
        kind: as in ``convert``.
        source (str): for the error.

    Returns:
        The value as ``kind``.

    Raises:
        ConfigError: naming the flag, its value and the type that was expected.
    """
    if kind is str:
        return text
    value: Any = text
    if kind is bool:
        value = {"True": True, "true": True, "False": False, "false": False}.get(text, text)
    elif kind is int:
        with contextlib.suppress(ValueError):  # convert says what is wrong with it
            value = int(text)
    elif kind is not float:
        value = _parse_literal(text)
    return convert(key, value, kind, source)


def _parse_literal(text: str) -> Any:
    """A list or mapping as YAML or Python writes it; the string itself if it is neither."""
    try:
        value = yaml.load(text, Loader=_Loader)
        if not isinstance(value, str):
            return value
    except (yaml.YAMLError, ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)  # a tuple, say, which YAML takes for a string
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _convert_mapping(key: str, value: Any, kind: Any, source: str) -> Any:
    kinds = typing.get_type_hints(kind)
    if not isinstance(value, dict) or set(value) != set(kinds):
        raise ConfigError(
            f"{key} is {reprlib.repr(value)} (from {source}): expected a mapping with the keys {', '.join(kinds)}."
        )
    return kind(
        **{name: convert(f"{key}.{name}", value[name], field_kind, source) for name, field_kind in kinds.items()}
    )


def _expectation(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        _, _, plural, example = _SCALARS[typing.get_args(kind)[0]]
        return f"a list of {plural} such as {example}"
    return _SCALARS[kind][1]


def _to_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the largest float
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError
    return number


def _to_str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


# converter, what is expected of one value, of several, an example of several
_SCALARS: dict[type, tuple[Callable[[Any], Any], str, str, str]] = {
    bool: (_to_bool, "True or False", "True or False", "[True, False]"),
    int: (_to_int, "an integer", "integers", "[4, 8]"),
    float: (_to_float, "a number", "numbers", "[0.5, 1.0]"),
    str: (_to_str, "a string, in quotes if it looks like something else", "strings", "['background', 'cat']"),
}
