"""Shows stories, statuses and checks on a terminal: trees and tables for people, JSON beside them for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:
    from node.ops.check import Check
    from node.workflow.control import Done
    from node.workflow.listing import StudyListed
    from node.workflow.status import Item, Refused, Status
    from node.workflow.story import DecisionTold, DeliveryTold, NotificationTold, RevisionTold, Story, WorkitemTold
    from storage.records import Quarantined

__all__ = ["show_checks", "show_done", "show_refused", "show_status", "show_story", "show_studies"]

_GOOD = frozenset({"COMPLETED", "DELIVERED", "ACKNOWLEDGED", "SUCCEEDED", "COMPLETE", "REPORTED"})
#: What a verdict keeps that is shown in lines of its own, or that the flags say.
_TOLD_APART = frozenset({"reason", "weighed", "missing", "flags"})
_BAD = frozenset({"PARKED", "FAILED", "LOST", "CANCELED"})


def show_story(console: Console, story: Story, *, events: bool) -> None:
    """Print a story as a tree, in the order in which things happen."""
    tree = Tree(f"[bold]study[/] {escape(story.study_instance_uid)}  {_state(story.state)}")
    tree.add(f"[bold]{escape(story.summary)}[/]")
    received = story.received
    sources = sum(one.instances > one.made_here for one in received.series)
    branch = tree.add(
        f"received {received.instances} instances in {sources} series"
        f" from {escape(', '.join(received.calling_ae_titles) or 'unknown')}"
        f", {_at(received.first_at)} to {_at(received.last_at)}"
    )
    for one in received.series:
        parts = [f"{one.instances} instances"]
        parts += [f"{one.made_here} made by a node"] if one.made_here else []
        parts += [f"{one.excluded} excluded"] if one.excluded else []
        title = f"{one.modality or '?'} series {one.series_number or '?'}"
        branch.add(escape(f"{title}: {', '.join(parts)}  {one.series_instance_uid}"))
    for count, text in (
        (received.variants, "came again under a known UID with other content: kept aside, the first one counts"),
        (received.conflicting, "stand under two Study or Series Instance UIDs"),
        (received.defective, f"cannot be analysed: {'; '.join(received.defects)}"),
        (received.excluded, "were excluded by an operator"),
    ):
        if count:
            branch.add(f"[yellow]{count} {escape(text)}[/]")
    for flag in story.flags:
        tree.add(f"[yellow]flagged {_at(flag.at)}: {escape(flag.reason)}[/]")
    for step in story.procedure_steps:
        text = f"{step.instances} instances in {step.series} series  {step.sop_instance_uid}"
        said = f"procedure step of {step.calling_ae_title or 'a modality'}"
        tree.add(f"{escape(said)}  {_state(step.state)}  {_at(step.ended_at or step.at)}  {escape(text)}")
    for counted in story.counts:
        when = f"asked {counted.asked}x, {_at(counted.at)}" if counted.at else "about to be asked"
        tree.add(escape(f"count at peer {counted.peer}: {when}  {counted.answer}".rstrip()))
    for revision in story.revisions:
        _add_revision(tree, revision, story.workitems)
    if events:
        branch = tree.add("events")
        for event in story.events:
            move = " -> ".join(part for part in (event.before, event.after) if part)
            branch.add(escape(f"{_at(event.at)}  {event.object} {move}  {event.reason}".rstrip()))
    console.print(tree, soft_wrap=True)


def _add_revision(tree: Tree, revision: RevisionTold, workitems: Sequence[WorkitemTold]) -> None:
    asked = bool(revision.verdict.get("rerun"))
    how = f"rerun asked for by {revision.verdict.get('by') or 'an operator'}" if asked else "judged complete"
    title = f"revision {revision.number}: {how} {_at(revision.opened_at)} with {revision.instances} instances"
    branch = tree.add(f"[bold]{escape(title)}[/]  {_state(revision.state)}")
    if revision.trouble:
        branch.add(f"[red]parked: {escape(revision.trouble)}[/]; overread retry {revision.target}")
    if not asked:
        _add_verdict(branch.add("why complete"), revision.verdict)
    for decision in revision.decisions:
        _add_decision(branch, decision)
    for workitem in workitems:
        uses = [use for use in workitem.uses if use.revision == revision.number]
        if uses:
            leaf = _add_workitem(branch, workitem, [(use.route, use.reason) for use in uses])
            if workitem.heat_maps is not None:
                of = ", ".join(one.name for one in workitem.heat_maps.maps)
                leaf.add(escape(f"heat maps of {of}: {workitem.heat_maps.file} (docs/models.md says what is in it)"))
    for message in revision.notifications:
        text = f"{message.target} to {message.receiver}, {message.control_id}"
        _add_tries(branch.add(f"{escape(text)}  {_state(message.state)}  {_outgoing(message)}"), message)


def _add_verdict(why: Tree, verdict: Mapping[str, Any]) -> None:
    """Show what was decisive, then what else was weighed and what is missing, then the figures."""
    if verdict.get("reason"):
        why.add(f"[bold]{escape(str(verdict['reason']))}[/]")
    for one in verdict.get("weighed", []):
        if one.get("says") != verdict.get("reason"):
            why.add(escape(str(one.get("says"))))
    for missing in verdict.get("missing", []):
        why.add(f"[yellow]missing: {escape(missing)}[/]")
    for key, value in verdict.items():
        if key not in _TOLD_APART and value not in ("", []):
            why.add(escape(f"{key.replace('_', ' ')}: {_value(value)}"), style="dim")


def _add_decision(branch: Tree, decision: DecisionTold) -> None:
    off = "[yellow]matched, and switched off[/]" if decision.switched_off else "[dim]not matched[/]"
    verdict = "[green]matched[/]" if decision.matched else off
    node = branch.add(f"route {escape(decision.route)}, model {escape(decision.model)}: {verdict}  {_at(decision.at)}")
    for reason in decision.reasons:
        node.add(escape(reason), style="dim")
    if decision.not_analysed:
        text = decision.not_analysed.get("text") or _value(decision.not_analysed)
        node.add(f"[yellow]not analysed: {escape(str(text))}[/]")


def _add_workitem(branch: Tree, workitem: WorkitemTold, wanted: Sequence[tuple[str, str]]) -> Tree:
    parked = "  [red]PARKED[/]" if workitem.parked else ""
    shadow = ", a shadow: nothing of it leaves" if workitem.shadow else ""
    title = escape(f"{workitem.target} {workitem.model} {workitem.model_version}{shadow}")
    node = branch.add(f"[bold]{title}[/]  {_state(workitem.state)}{parked}  {escape(workitem.uid)}")
    if workitem.outcome:
        node.add(escape(workitem.outcome))
    if workitem.priority != "MEDIUM":
        node.add(f"priority {workitem.priority}")
    for route, reason in wanted:
        node.add(escape(f"wanted by {route}: {reason}"))
    for role, chosen in workitem.input_set.items():
        node.add(escape(f"reads {role}: {_value(chosen)}"))
    if workitem.replaces:
        node.add(f"replaces {escape(workitem.replaces)}")
    if workitem.replaced_by:
        node.add(f"[yellow]replaced by {escape(workitem.replaced_by)}[/]")
    for attempt in workitem.attempts:
        times = f"{_at(attempt.started_at)}" + (
            f", {_seconds(attempt.started_at, attempt.ended_at)}" if attempt.ended_at else ""
        )
        counts = ", which counts as no try" if attempt.state == "RELEASED" else ""
        text = escape(f"{attempt.outcome}{counts}".removeprefix(", "))
        node.add(f"attempt {attempt.number}  {_state(attempt.state)}  {times}  {text}".rstrip())
    for document in workitem.documents:
        leaf = node.add(f"{escape(document.kind)} {escape(document.sop_instance_uid)}  {_at(document.created_at)}")
        for delivery in document.deliveries:
            text = f"{delivery.target} to {delivery.destination}"
            _add_tries(leaf.add(f"{escape(text)}  {_state(delivery.state)}  {_outgoing(delivery)}"), delivery)
    return node


def _add_tries(node: Tree, one: DeliveryTold | NotificationTold) -> None:
    """Show each try with its time and outcome, where there was more to it than one that worked."""
    if len(one.history) > 1 or any(each.outcome in ("refused", "failed", "parked") for each in one.history):
        for each in one.history:
            node.add(f"{_at(each.at)}  {escape(f'{each.outcome}: {each.answer}'.rstrip(': '))}", style="dim")


def show_studies(console: Console, studies: Sequence[StudyListed]) -> None:
    """Print studies one a line, the UID first: it has to be copied whole."""
    for one in studies:
        what = f"{', '.join(one.modalities) or 'no modality'}, {one.instances} instances, {_at(one.last_received_at)}"
        console.print(
            f"{escape(one.study_instance_uid)}  {_state(one.state)}  [bold]{one.outcome}[/]  {escape(what)}",
            soft_wrap=True,
            highlight=False,
        )
    if not studies:
        console.print("no study has been received yet")


def show_status(console: Console, status: Status) -> None:
    """Print what is held, what waits, and what is parked with what to do about it."""
    for kind, states in status.counts.items():
        counted = ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
        console.print(f"{kind:<13}{counted}", highlight=False)
    for hold in status.paused:
        console.print(f"[yellow]paused       {escape(f'{hold.kind} {hold.name}')} since {_at(hold.since)}[/]")
    _items(console, "waiting", status.waiting)
    _items(console, "parked", status.parked)
    for flag in status.flagged:
        console.print(f"[yellow]flagged[/] {flag.kind} {_at(flag.raised_at)}", soft_wrap=True, highlight=False)
        for name, text in (("study", flag.study_instance_uid), ("why", flag.reason)):
            console.print(f"    {name:<6}{escape(text)}", soft_wrap=True, highlight=False)
    if status.flagged_in_all > len(status.flagged):
        console.print(f"flagged in all: {status.flagged_in_all}")
    if sum(status.damaged_in_all.values()):
        counted = ", ".join(f"{count} {kind}" for kind, count in status.damaged_in_all.items() if count)
        console.print(f"[red]damaged      {counted}[/]: send these studies again, or restore a backup")
        for damaged in status.damaged:
            what = f"{damaged.kind} {damaged.blob[:2]}/{damaged.blob}"
            of = f"instance {damaged.sop_instance_uid} of study {damaged.study_instance_uid}"
            console.print(f"    {what}  {of if damaged.sop_instance_uid else ''}", soft_wrap=True, highlight=False)
    if status.refused_in_all:
        show_refused(console, status.refused, f"refused: {status.refused_in_all} (overread quarantine)")
    if not (status.waiting or status.parked or status.flagged or status.refused_in_all):
        console.print("nothing waits, nothing is parked")


def show_refused(console: Console, refused: Sequence[Refused] | Sequence[Quarantined], title: str) -> None:
    """Print what is in quarantine, with the number that the commands take."""
    table = Table(title=title, title_justify="left")
    for heading in ("id", "from", "when", "bytes", "reason"):
        table.add_column(heading, overflow="fold")
    for one in refused:
        table.add_row(
            str(one.id), escape(one.calling_ae_title), _at(one.received_at), str(one.size), escape(one.reason)
        )
    console.print(table)


def _items(console: Console, title: str, items: Sequence[Item]) -> None:
    """Print each item as a few lines: a UID has to be copied whole, however narrow the terminal."""
    for one in items:
        head = f"[bold]{title}[/] {one.target}  {_state(one.state)}  {escape(one.what)}  since {_at(one.since)}"
        console.print(head + (f", next try {_at(one.next_at)}" if one.next_at else ""), soft_wrap=True)
        for name, text in (("study", one.study_instance_uid), ("why", one.reason), ("do", one.todo)):
            if text:
                console.print(f"    {name:<6}{escape(text)}", soft_wrap=True, highlight=False)


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """Print what was checked, with what to do about what is not in order."""
    table = Table()
    for heading in ("", "what", "found", "do"):
        table.add_column(heading, overflow="fold")
    for one in checks:
        mark = Text("NO", style="bold red")
        if one.passed:
            # In order, and still something that an operator has to know.
            mark = Text("!", style="bold yellow") if one.todo else Text("ok", style="green")
        table.add_row(mark, escape(one.what), escape(one.found), escape(one.todo))
    console.print(table)


def show_done(console: Console, done: Done) -> None:
    """Print what an action changed, what it left, and what is to be looked at."""
    for line in done.changed:
        console.print(f"[green]done[/]  {escape(line)}", soft_wrap=True)
    for line in done.unchanged:
        console.print(f"[dim]as is[/] {escape(line)}", soft_wrap=True)
    for line in done.warnings:
        console.print(f"[yellow]look[/]  {escape(line)}", soft_wrap=True)
    if done.hint:
        console.print(f"next  {escape(done.hint)}", soft_wrap=True)


def _outgoing(one: DeliveryTold | NotificationTold) -> str:
    parts = [f"tried {one.tries}x", _at(one.ended_at or one.created_at)]
    parts += [f"next {_at(one.next_at)}"] if one.next_at else []
    parts += [escape(one.answer)] if one.answer else []
    return ", ".join(parts)


def _state(state: str) -> str:
    colour = "green" if state in _GOOD else "red" if state in _BAD else "yellow"
    return f"[{colour}]{state}[/]"


def _at(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S%z")


def _seconds(start: datetime, end: datetime) -> str:
    return f"{(end - start).total_seconds():.1f} s"


def _value(value: Any) -> str:
    """Show what a row keeps as JSON on one line; long lists by their length."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {_value(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) if len(value) <= 3 else f"({len(value)})"
    return str(value)
