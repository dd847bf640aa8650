"""``make soak``: what the tests do for a minute, done for long, with a table at the end.

    make soak                                   200 kills, 100,000 hostile inputs: about an hour on two cores
    make soak KILLS=40 INPUTS=20000 SEED=7      less of it; SEED repeats a run

A failure is printed with the command that repeats it; failing inputs are saved. The exit status is 1 where anything
failed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.fuzzing import Report, fuzz_conversations, fuzz_datasets

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
#: So many inputs to one process or one pair of receivers: what leaks shows within them.
_PIECE = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--inputs", type=int, default=100_000, help="half of them datasets, half conversations")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    arguments = parser.parse_args()
    console = Console(width=max(100, Console().width))
    console.print(f"seed {arguments.seed}; {arguments.kills} kills, {arguments.inputs} inputs")
    table = Table("what", "how often", "minutes", "result", title=f"soak, seed {arguments.seed}")
    failures: list[str] = []
    for kind in ("datasets", "conversations"):
        _fuzz(console, table, failures, kind, arguments.seed, arguments.inputs // 2)
    _kill(console, table, failures, arguments.seed, arguments.kills)
    for failure in failures:
        console.print(f"[red]FAILED[/] {failure}", highlight=False)
    console.print(table)
    sys.exit(bool(failures))


def _fuzz(console: Console, table: Table, failures: list[str], kind: str, seed: int, inputs: int) -> None:
    began, done, wrong = time.monotonic(), 0, 0
    outcomes: dict[str, int] = {}
    for start in range(0, inputs, _PIECE):
        numbers = range(start, min(inputs, start + _PIECE))
        report = _piece(kind, seed, numbers)
        done += report.inputs
        wrong += len(report.failures)
        failures += [f"{kind}: {one}" for one in report.failures]
        for outcome, count in report.outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
        console.print(f"{kind}: {done} of {inputs}, {wrong} failures, grown by {report.grown >> 20} MB")
    for outcome, count in sorted(outcomes.items(), key=lambda one: -one[1]):
        console.print(f"  {count:7} {outcome}", highlight=False)
    result = "nothing crashed, hung or leaked" if not wrong else f"{wrong} failures"
    table.add_row(f"hostile {kind}", str(done), f"{(time.monotonic() - began) / 60:.1f}", result)


def _piece(kind: str, seed: int, numbers: range) -> Report:
    if kind == "datasets":
        return fuzz_datasets(seed, numbers, _SHARED if _SHARED.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="overread-soak-") as folder:
        return fuzz_conversations(seed, numbers, Path(folder) / "receiver")


def _kill(console: Console, table: Table, failures: list[str], seed: int, kills: int) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "tests/faults/test_kills.py"],
        env={**os.environ, "OVERREAD_KILLS": str(kills), "OVERREAD_SEED": str(seed)},
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    told = re.findall(r"killed .*; acknowledged \d+", done.stdout)
    for line in told:
        console.print(line, highlight=False)
    acknowledged = sum(int(line.rsplit(" ", 1)[1]) for line in told)
    if done.returncode:
        failures.append(f"kills: OVERREAD_KILLS={kills} OVERREAD_SEED={seed} pytest tests/faults/test_kills.py\n")
        console.print(done.stdout[-4000:], highlight=False)
    result = f"{acknowledged} acknowledged, none lost" if not done.returncode else "see above"
    table.add_row("kill -9 within a push", str(kills), f"{(time.monotonic() - began) / 60:.1f}", result)


if __name__ == "__main__":
    main()
