"""What failed is tried again at growing pauses; only a peer that answers and refuses is given up."""

from __future__ import annotations

import math

import pytest

from node.settings import RetrySettings
from node.workflow.retry import GiveUp, TryAgain, decide

SETTINGS = RetrySettings(first_seconds=5, maximum_seconds=600, refusals=3)


def _pause(tries: int, *, refusals: int = 0, refused: bool = False, settings: RetrySettings = SETTINGS) -> float:
    decided = decide(settings, tries=tries, refusals=refusals, refused=refused)
    assert isinstance(decided, TryAgain)
    return decided.seconds


def test_the_first_pause_is_the_configured_one_and_each_further_one_doubles() -> None:
    assert [_pause(tries) for tries in range(6)] == [5, 10, 20, 40, 80, 160]


def test_pauses_never_shrink_and_never_pass_the_maximum() -> None:
    pauses = [_pause(tries) for tries in range(200)]
    assert pauses == sorted(pauses)
    assert max(pauses) == pauses[7] == 600


def test_a_maximum_below_the_first_pause_holds_from_the_start() -> None:
    assert _pause(0, settings=RetrySettings(first_seconds=5, maximum_seconds=2)) == 2


@pytest.mark.parametrize("tries", [0, 1, 1_000, 10**9])
def test_who_cannot_be_reached_is_waited_for_without_end(tries: int) -> None:
    pause = _pause(tries, refusals=2, refused=False)
    assert 0 < pause <= 600
    assert math.isfinite(pause)


def test_refusals_park_when_there_have_been_as_many_as_configured() -> None:
    decided = [decide(SETTINGS, tries=n, refusals=n, refused=True) for n in range(4)]
    assert [type(one) for one in decided] == [TryAgain, TryAgain, GiveUp, GiveUp]


def test_tries_at_a_peer_that_was_away_do_not_count_as_refusals() -> None:
    assert _pause(50, refusals=0, refused=True) == 600


def test_one_refusal_is_enough_where_so_configured() -> None:
    assert decide(RetrySettings(refusals=1), tries=0, refusals=0, refused=True) == GiveUp()
