"""How versions of models look on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from node.cli.cardfacts import card_facts

if TYPE_CHECKING:
    from rich.console import Console

    from node.workflow.comparing import Comparison
    from node.workflow.governing import Verified
    from node.workflow.overview import VersionShown, VersionTold
    from storage.records import ModelChange

__all__ = ["show_comparison", "show_history", "show_test", "show_verified", "show_version", "show_versions"]

_COLOURS = {"live": "green", "canary": "yellow", "shadow": "cyan", "candidate": "default", "retired": "dim"}


def show_versions(console: Console, versions: Sequence[VersionShown]) -> None:
    """Print every version on a line."""
    table = _table("model", "stage", "tested", "runs by", "routes", "what it is")
    for one in versions:
        what = [f"{one.title} ({one.task}, {one.engine})"] if not one.problem else []
        what += [f"reads nothing: {one.idle}"] if one.idle else []
        what += [f"to do: {one.todo}"] if one.todo and not one.idle else []
        table.add_row(
            f"{one.name}@{one.version}",
            _stage(one.stage, one.share),
            _tested(one.test_passed, one.tested_at),
            escape(one.way),
            escape(", ".join(one.routes)),
            escape("; ".join(what)),
        )
    console.print(table)


def show_version(console: Console, told: VersionTold) -> None:
    """Print one version with all that is known of it."""
    one = told.shown
    console.print(f"[bold]{one.name}@{one.version}[/]  {_stage(one.stage, one.share)}", highlight=False)
    facts = [("digest", one.digest), ("device", one.device_uid), ("origin", f"{one.origin}, {_at(one.added_at)}")]
    facts += [("routes", ", ".join(one.routes) or "none")]
    facts += [("reads nothing", one.idle)] if one.idle else []
    facts += [("runs by", one.way)] if one.way else []
    facts += [("to do", one.todo)] if one.todo else []
    facts += card_facts(told.card) if told.card else []
    facts += [("look at", line) for line in told.cautions]
    for name, text in facts:
        console.print(f"{name:<15}{escape(text)}", soft_wrap=True, highlight=False)
    if told.test:
        show_test(console, told.test)
    show_history(console, told.history)


def show_verified(console: Console, found: Sequence[Verified]) -> None:
    """Print of which versions the bytes are what they were."""
    for one in found:
        mark = "[green]ok[/]" if one.passed else "[bold red]NO[/]"
        console.print(f"{mark}  {one.version}  {escape(one.found)}", soft_wrap=True, highlight=False)


def show_test(console: Console, report: Mapping[str, Any]) -> None:
    """Print what a test has come to, with every mismatch."""
    colour = "green" if report["passed"] else "red"
    verdict = "passed" if report["passed"] else "not passed"
    by = f", by {report['way']}" if report.get("way") else ""
    console.print(f"[{colour}]test {verdict}[/]: {escape(str(report['summary']) + by)}", soft_wrap=True)
    if report.get("remark"):
        console.print(f"    [yellow]{escape(str(report['remark']))}[/]", soft_wrap=True)
    for one in report["samples"]:
        said = ", ".join(f"{name} {value:.4g}" for name, value in one["said"].items())
        mark = "[green]as expected[/]" if one["passed"] else "[red]mismatch[/]"
        console.print(f"    {escape(one['name'])}: {mark}  {escape(said)}  {one['seconds']:.2f} s", soft_wrap=True)
        for mismatch in one["mismatches"]:
            console.print(f"        [red]{escape(mismatch)}[/]", soft_wrap=True)


def show_history(console: Console, changes: Sequence[ModelChange]) -> None:
    """Print changes, the newest first."""
    table = _table("when", "version", "what", "from", "to", "who", "why")
    for one in changes:
        share = one.detail.get("share")
        after = _stage(one.after, share) if one.after else ""
        if "passed" in one.detail:
            after = "passed" if one.detail["passed"] else "[red]not passed[/]"
        table.add_row(
            _at(one.at),
            escape(f"{one.model}@{one.version}"),
            one.action,
            one.before or "",
            after,
            escape(one.by),
            escape(one.why),
        )
    console.print(table)


def show_comparison(console: Console, found: Comparison) -> None:
    """Print two versions beside each other."""
    console.print(
        f"A = {escape(found.a)}, B = {escape(found.b)}: both have read {found.input_sets} input sets of "
        f"{found.studies} studies; analysed by both {found.both_analysed}, by A alone {found.only_a_analysed}, "
        f"by B alone {found.only_b_analysed}",
        soft_wrap=True,
    )
    if found.mean_seconds_a is not None and found.mean_seconds_b is not None:
        console.print(f"mean time: A {found.mean_seconds_a:.2f} s, B {found.mean_seconds_b:.2f} s")
    table = _table("output", "n", "agree", "both / A / B / neither", "mean B - A", "mean |B - A|", "largest", "Dice")
    for one in found.outputs:
        dice = "" if one.mean_dice is None else f"{one.mean_dice:.4f}, least {one.least_dice:.4f}"
        counts = f"{one.both} / {one.only_a} / {one.only_b} / {one.neither}" if one.agreement is not None else ""
        unit = {"volume": " mL", "area": " mm2", "pixels": " pixels"}.get(one.kind, "")
        table.add_row(
            escape(one.output),
            str(one.count),
            "" if one.agreement is None else f"{100 * one.agreement:.1f} %",
            counts,
            f"{one.mean_difference:+.4g}{unit}",
            f"{one.mean_absolute_difference:.4g}{unit}",
            f"{one.largest_difference:+.4g}{unit}",
            dice,
        )
    console.print(table)


def _table(*headings: str) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _stage(stage: str | None, share: float | None) -> str:
    part = f" {100 * share:g} %" if share else ""
    return f"[{_COLOURS.get(str(stage), 'default')}]{stage}{part}[/]"


def _tested(passed: bool | None, at: datetime | None) -> str:
    if passed is None or at is None:
        return "[dim]no[/]"
    return f"[green]passed[/] {_at(at)}" if passed else f"[red]failed[/] {_at(at)}"


def _at(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S%z")
