"""Reads a card's YAML within bounds, since others wrote it.

An alias of YAML stands for what was said before: a few lines of them unfold to more than any memory holds as soon as a
card is shown. So what a card comes to is counted before anything is built from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from inference.errors import CardError
from inference.yamlkeys import refuse_twice

__all__ = ["read_yaml"]

_MOST_BYTES = 1 << 20
#: Values, keys and groups of them, each alias counted as what it stands for.
_MOST_NODES = 100_000
_DEEPEST = 32
_LARGEST = 1 << 63
#: What PyYAML says of a frequent slip, and what to do about it.
_HINTS = {
    "mapping values are not allowed here": 'a text with a colon and a space in it stands in quotes: title: "Lungs: CT"',
}


class _Loader(yaml.SafeLoader):
    """Builds plain values only, from a tree that is bounded."""

    _depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Any:
        """Refuse what lies too deep before Python's own stack does."""
        if self._depth >= _DEEPEST:
            raise _refused(f"nested more than {_DEEPEST} deep", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def get_single_node(self) -> Any:
        """Return the file's tree, once its aliases are known to unfold to no more than a card may hold."""
        node = super().get_single_node()
        if node is not None:
            _weigh(node, {})
        return node

    def construct_integer(self, node: ScalarNode) -> int:
        """Refuse an integer of more than 64 bits."""
        value = int(self.construct_yaml_int(node))
        if abs(value) >= _LARGEST:
            raise _refused("an integer of more than 64 bits", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def _weigh(node: Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Return how many nodes a node unfolds to, and how deep; each is looked at once, a key that stands twice too."""
    if id(node) in known:
        weight = known[id(node)]
        if weight is None:
            raise _refused("an alias of what it lies in", node.start_mark)
        return weight
    known[id(node)] = None
    inner: list[Node] = []
    if isinstance(node, MappingNode):
        refuse_twice(node)
        inner = [one for pair in node.value for one in pair]
    elif isinstance(node, SequenceNode):
        inner = node.value
    weights = [_weigh(one, known) for one in inner]
    count, depth = 1 + sum(one for one, _ in weights), 1 + max((deep for _, deep in weights), default=0)
    if count > _MOST_NODES or depth > _DEEPEST:
        raise _refused(
            f"comes to more than {_MOST_NODES} values, or {_DEEPEST} deep, with its aliases", node.start_mark
        )
    known[id(node)] = count, depth
    return count, depth


def _refused(why: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=mark)


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises
    ------
    CardError
        If it cannot be read, is no YAML, or goes beyond what a card may hold.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise CardError(f"{path}: is larger than {_MOST_BYTES >> 20} MB; expected a model's card")
        return yaml.load(content.decode("utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as problem:
        raise CardError(f"{path}: cannot be read ({type(problem).__name__}); expected a model's card") from problem
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        why = f": {problem.problem}" if isinstance(problem, yaml.MarkedYAMLError) and problem.problem else ""
        hint = _HINTS.get(str(getattr(problem, "problem", None)), "expected a model's card")
        raise CardError(f"{path}: not YAML{where}{why}; {hint}") from problem
    except (ValueError, OverflowError, RecursionError, ArithmeticError, LookupError, TypeError) as problem:
        # What PyYAML lets through: a date that is none, a number of too many digits, an empty !!int or !!float.
        raise CardError(
            f"{path}: holds a value that is not what its form says ({type(problem).__name__}); expected a model's card"
        ) from problem
