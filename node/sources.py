"""Reads configuration from a YAML file and the environment, and remembers which of the two said what.

Kept apart from the models in :mod:`node.settings`, which say what is allowed: here a complaint gets its address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from inference.yamlkeys import refuse_twice
from node.errors import ConfigurationError

__all__ = ["ENVIRONMENT_PREFIX", "Values", "read_values", "read_yaml"]

ENVIRONMENT_PREFIX: Final = "OVERREAD__"


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, where YAML's reader would quietly keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        refuse_twice(node)
        return super().construct_mapping(node, deep=deep)


@dataclass(frozen=True, slots=True)
class Values:
    """What a file and the environment say together; the environment wins.

    ``variables`` gives the path, in the configuration's own spelling, that each environment variable sets.
    """

    file: Path
    merged: dict[str, Any]
    from_file: Mapping[str, Any]
    from_environment: Mapping[str, Any]
    variables: Mapping[str, tuple[str, ...]]

    def source_of(self, place: Sequence[str]) -> str:
        """Return who is to blame for what stands at a place, or for what is lacking there: file or variable."""
        depth, end = _walk(self.from_environment, place)
        reached, in_file = _walk(self.from_file, place[:depth])
        # A mapping of the environment is laid over one of the file; all else stands in place of it.
        if reached == depth and isinstance(end, dict) and isinstance(in_file, dict):
            return str(self.file)
        name = max(self.variables, key=lambda name: _common(self.variables[name], place))
        return f"environment variable {name}"


def read_values(file: Path, environment: Mapping[str, str]) -> Values:
    """Read a file and lay the environment over it.

    ``OVERREAD__SECTION__KEY`` sets ``section.key``, whatever the case; a value that is a JSON list or object is one.

    Raises
    ------
    ConfigurationError
        When the file cannot be read or is no mapping.
    """
    told = read_yaml(file)
    told = {} if told is None else told
    if not isinstance(told, dict):
        raise ConfigurationError(f"{file}: expected a mapping of sections, found {type(told).__name__}")
    said: dict[str, Any] = {}
    variables: dict[str, tuple[str, ...]] = {}
    found = {name: value for name, value in environment.items() if name.upper().startswith(ENVIRONMENT_PREFIX)}
    # The shallow ones first, so that OVERREAD__A__B says more than OVERREAD__A.
    for name in sorted(found, key=lambda name: (name.count("__"), name)):
        path: list[str] = []
        for part in name[len(ENVIRONMENT_PREFIX) :].lower().split("__"):
            path.append(_spelled(_walk(told, path)[1], part))
        value = _value(found[name])
        for part in reversed(path):
            value = {part: value}
        said = _over(said, value)
        variables[name] = tuple(path)
    return Values(file, _over(told, said), told, said, variables)


def read_yaml(file: Path, *, named_by: str = "name one with --config") -> Any:
    """Return what a YAML file holds, None where it is empty; raises ConfigurationError with the file and the line.

    Parameters
    ----------
    named_by
        What to do where there is no such file.
    """
    try:
        return _Loader(file.read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        raise ConfigurationError(f"{file}: no such file; {named_by}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{file}: cannot be read: it is not UTF-8 text") from None
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0] or type(error).__name__
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigurationError(f"{file}: not valid YAML{where}: {problem}") from None


def _value(text: str) -> Any:
    """Return a list or an object where the text is one in JSON, else the text."""
    if text.lstrip().startswith(("[", "{")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _over(lower: Any, upper: Any) -> Any:
    """Return the upper value, with what only the lower mapping has."""
    if not (isinstance(lower, dict) and isinstance(upper, dict)):
        return upper
    return lower | {key: _over(lower.get(key), one) for key, one in upper.items()}


def _spelled(there: Any, part: str) -> str:
    """Return the key as the file has it, since names of destinations and notifiers may have capitals."""
    keys = there if isinstance(there, dict) else ()
    return next((key for key in keys if isinstance(key, str) and key.lower() == part), part)


def _walk(value: Any, place: Sequence[str]) -> tuple[int, Any]:
    """Return how far a place can be followed, and what stands there."""
    for depth, part in enumerate(place):
        if not isinstance(value, dict) or part not in value:
            return depth, value
        value = value[part]
    return len(place), value


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
