"""Sharing series out among the roles of a card: each series in one role at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["fill_roles"]


def fill_roles(ranked: Mapping[str, Sequence[str]], optional: Sequence[str] = ()) -> tuple[dict[str, str], list[str]]:
    """Give each role a series.

    The role with the fewest series that it can read chooses first (of equals, the first), and takes its best. A
    required role gives its series up only where another could not be filled otherwise, and only for another series: so
    all are filled wherever that is possible (augmenting paths, Kuhn 1955). Optional roles take the best of what is
    left.

    Parameters
    ----------
    ranked
        Role to the series that it can read, the best first.
    optional
        The roles that may stay empty.

    Returns
    -------
    tuple
        Role to series; and the required roles that no series is left for.
    """
    filled: dict[str, str] = {}

    def fill(role: str, asked: set[str]) -> bool:
        holders = {series: holder for holder, series in filled.items()}
        for series in sorted(ranked[role], key=lambda one: one in holders):
            if series in asked:
                continue
            asked.add(series)
            if series not in holders or fill(holders[series], asked):
                filled[role] = series
                return True
        return False

    by_choice = sorted(ranked, key=lambda role: len(ranked[role]))
    filled_all = {role: fill(role, set()) for role in by_choice if role not in optional}
    for role in by_choice:
        free = [series for series in ranked[role] if series not in filled.values()]
        if role in optional and free:
            filled[role] = free[0]
    return filled, [role for role in ranked if not filled_all.get(role, True)]
