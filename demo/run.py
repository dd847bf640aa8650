"""Shows the whole way on one machine: starts PACS, EMR and node, sends studies, and prints what came of them.

Run it by ``make demo``. Everything it starts listens on free ports of the loopback interface and is stopped at the
end, also on Ctrl-C. Nothing here is imported from the node: it is started, sent to and asked as an outsider would.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from demo.peers import ROOT, MllpReceiver, Orthanc, PeerError, Process, find_orthanc, free_port, wait_until
from demo.results import Message, Pacs, read_log
from demo.studies import Study, find_studies, make_phantoms
from demo.table import Row, build_table, judge

AE_TITLE = "OVERREAD"
QUIET_SECONDS = 3
_REASONS = 12


@dataclass(frozen=True, kw_only=True)
class Node:
    """The node under demonstration: a process, known by its ports only."""

    process: Process
    configuration: Path
    dimse_port: int
    http_url: str

    def ready(self) -> bool:
        """Whether it says that it is ready; PeerError when it ended instead."""
        if not self.process.running:
            raise PeerError(f"the node ended with status {self.process.exit_status}:\n{self.process.log_tail()}")
        return httpx.get(f"{self.http_url}/health/ready").status_code == 200

    def status(self) -> dict[str, Any]:
        """Ask the node what waits and what is parked, by its own command."""
        command = [_program(), "status", "--json", "--config", str(self.configuration)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        status: dict[str, Any] = json.loads(done.stdout)
        return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; 0 when every expected result is there."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder of DICOM files to send instead of phantoms")
    parser.add_argument("--pacs", choices=("auto", "orthanc", "node"), default="auto", help="who answers as the PACS")
    parser.add_argument("--quick", action="store_true", help="draw a coarser chest CT, to be done sooner")
    parser.add_argument("--deadline", type=float, default=300.0, help="seconds to wait for the results")
    options = parser.parse_args(arguments)
    # A terminal shows the width it has; a log file gets one that the table can be read in.
    console = Console(width=None if sys.stdout.isatty() else 160)
    if options.data is not None and not options.data.is_dir():
        console.print(f"[red]DATA={options.data} is no folder[/]")
        return 2
    # A stop request has to unwind the stack below, which stops whatever was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            return _demonstrate(options, console, stack)
    except KeyboardInterrupt:
        console.print("[yellow]Stopped before the end; everything that was started has been stopped too.[/]")
        return 130
    except (PeerError, TimeoutError, subprocess.CalledProcessError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1


def _demonstrate(options: argparse.Namespace, console: Console, stack: ExitStack) -> int:
    began = time.monotonic()
    # Before anything is started: a wrong folder is to be said at once.
    given = find_studies(options.data) if options.data is not None else []
    if options.data is not None and not given:
        console.print(f"There is no DICOM file in {options.data}.", style="red", markup=False)
        return 1
    folder = _fresh_folder()
    use_orthanc = options.pacs == "orthanc" or (options.pacs == "auto" and find_orthanc() is not None)
    progress = stack.enter_context(
        Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
    )
    with _step(progress, "Start the PACS (Orthanc) and the EMR (MLLP receiver)" if use_orthanc else "Start the EMR"):
        emr = MllpReceiver(folder=folder / "emr")
        stack.callback(emr.stop)
        emr.start()
        orthanc = None
        if use_orthanc:
            orthanc = Orthanc(folder=folder / "pacs")
            stack.callback(orthanc.stop, kill=True)
            orthanc.start()
    with _step(progress, "Start the node, until it says that it is ready"):
        node = _start_node(folder, orthanc, emr, stack)
        wait_until(node.ready, 90, "the node to be ready")
    if options.data is None:
        making = progress.add_task("Draw phantoms: chest CT, three radiographs, a head CT", total=5)
        studies = make_phantoms(folder / "images", lambda: progress.advance(making), quick=options.quick)
    else:
        studies = given
    sent_at = _send_all(studies, node, orthanc, progress)

    pacs = Pacs(orthanc.dicomweb_url if orthanc is not None else f"{node.http_url}/dicom-web")
    _await_results(studies, emr, pacs, node, progress, options.deadline)
    messages = read_log(emr.messages())
    rows = [row for study in studies for row in judge(study, messages, pacs, sent_at[study.uid])]
    progress.stop()
    why = ", since no Orthanc is installed" if find_orthanc() is None else ""
    kind = "Orthanc" if orthanc is not None else f"the node's own archive{why}"
    console.print()
    console.print(build_table(rows, f"What the outside sees. PACS: {kind} ({pacs.url})"))
    console.print(
        f"[dim]Seconds run from a study's last C-STORE until, its results being in the PACS, the EMR had the message, "
        f"{QUIET_SECONDS} s of quiet time included. Research use only; not a medical device. Logs: {folder}[/]"
    )
    parked = node.status()["parked"]
    for item in parked:
        console.print(f"parked: {item['what']}: {item['reason']}", style="red", markup=False, highlight=False)
    if parked:
        return 1
    return _verdict(rows, console, time.monotonic() - began, expected_known=options.data is None)


def _verdict(rows: Sequence[Row], console: Console, seconds: float, *, expected_known: bool) -> int:
    wrong = [row for row in rows if row.complaints]
    answered = [row for row in rows if row.message is not None]
    if expected_known and not wrong:
        console.print(f"[green]Every expected result is there, once, and right.[/] {seconds:.0f} s in all.")
        return 0
    if not expected_known and not wrong and answered:
        silent = len(rows) - len(answered)
        rest = f"; nothing was said about {silent} (overread explain STUDY_UID tells why)" if silent else ""
        console.print(
            f"[green]{len(answered)} results, each in the PACS and in the EMR{rest}.[/] {seconds:.0f} s in all."
        )
        return 0
    for row in wrong:
        console.print(f"{row.study.title}: {'; '.join(row.complaints)}", style="red", markup=False, highlight=False)
    if not answered:
        console.print("[red]No result arrived at all.[/]")
    return 1


@contextmanager
def _step(progress: Progress, description: str) -> Iterator[None]:
    task = progress.add_task(description, total=1)
    yield
    progress.advance(task)


def _fresh_folder() -> Path:
    """Make a folder for this run, and remove those of runs that have ended."""
    base = ROOT / "build" / "demo"
    base.mkdir(parents=True, exist_ok=True)
    for old in base.glob("run-*"):
        owner = old.name.rpartition("-")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(old, ignore_errors=True)
    folder = base / f"run-{datetime.now(UTC):%Y%m%d%H%M%S}-{os.getpid()}"
    folder.mkdir()
    return folder


def _program() -> str:
    """Return the command that ``make install`` has made beside the running Python."""
    program = Path(sys.executable).parent / "overread"
    if not program.exists():
        raise PeerError(f"{program} is not there: run make install first")
    return str(program)


def _start_node(folder: Path, orthanc: Orthanc | None, emr: MllpReceiver, stack: ExitStack) -> Node:
    dimse_port, http_port = free_port(), free_port()
    routes = yaml.safe_load((ROOT / "conf" / "routes.yaml").read_text(encoding="utf-8"))
    peers: dict[str, Any] = {}
    destinations: dict[str, Any] = {}
    if orthanc is not None:
        peers["pacs"] = {"ae_title": orthanc.ae_title, "host": "127.0.0.1", "port": orthanc.dimse_port}
        destinations["pacs"] = {"kind": "dimse", "peer": "pacs"}
    for route in routes:
        route["deliver"] = list(destinations)
        route["notify"] = ["emr"]
    configuration = {
        "data_dir": str(folder / "node"),
        "dimse": {"ae_title": AE_TITLE, "bind": "127.0.0.1", "port": dimse_port},
        "http": {"bind": "127.0.0.1", "port": http_port},
        "completion": {"quiet_seconds": QUIET_SECONDS},
        "peers": peers,
        "destinations": destinations,
        "notifiers": {
            "emr": {
                "kind": "hl7",
                "host": "127.0.0.1",
                "port": emr.port,
                "sending_facility": "DEMO",
                "receiving_application": "EMR",
            }
        },
        "models": str(ROOT / "conf" / "models"),
        "demonstration_models": True,
        "routes": routes,
    }
    path = folder / "node.yaml"
    path.write_text(yaml.safe_dump(configuration, allow_unicode=True), encoding="utf-8")
    process = Process(command=[_program(), "serve", "--config", str(path)], log_path=folder / "node.log")
    stack.callback(process.stop, 30.0)
    process.start()
    return Node(process=process, configuration=path, dimse_port=dimse_port, http_url=f"http://127.0.0.1:{http_port}")


def _send_all(studies: Sequence[Study], node: Node, orthanc: Orthanc | None, progress: Progress) -> dict[str, float]:
    """Send every folder to the PACS and to the node, as a modality does; return when each study's last image left."""
    folders = list(dict.fromkeys(study.folder for study in studies))
    targets = [f"{AE_TITLE}@127.0.0.1:{node.dimse_port}"]
    if orthanc is not None:
        targets.insert(0, f"{orthanc.ae_title}@127.0.0.1:{orthanc.dimse_port}")
    task = progress.add_task("Send the studies by C-STORE", total=len(folders) * len(targets))
    sent_at: dict[str, float] = {}
    for folder in folders:
        for target in targets:
            done = subprocess.run(
                [_program(), "send", str(folder), "--to", target], capture_output=True, text=True, check=False, cwd=ROOT
            )
            if done.returncode != 0:
                failure = _failure(folder, target, done)
                # Someone else's folder may hold what a PACS refuses; the rest is still worth showing.
                if all(study.model is not None for study in studies):
                    raise PeerError(failure)
                progress.console.print(failure, style="yellow", markup=False)
            progress.advance(task)
        moment = time.time()
        sent_at |= {study.uid: moment for study in studies if study.folder == folder}
    return sent_at


def _failure(folder: Path, target: str, done: subprocess.CompletedProcess[str]) -> str:
    """Say what a send came to: its summary, and which files were not stored because of what."""
    why = [line for line in done.stderr.splitlines() if "left out" not in line]
    more = [f"... and {len(why) - _REASONS} more lines"] if len(why) > _REASONS else []
    summary = next(iter(done.stdout.splitlines()), "nothing was sent")
    return "\n".join([f"not all of {folder} went to {target}: {summary}", *why[:_REASONS], *more])


def _await_results(
    studies: Sequence[Study], emr: MllpReceiver, pacs: Pacs, node: Node, progress: Progress, deadline: float
) -> None:
    """Poll PACS and EMR until every study's results are there, or the deadline has passed, whatever is missing."""
    task = progress.add_task("Results in the PACS and in the EMR", total=len(studies))
    present: set[str] = set()
    expected_known = all(study.model is not None for study in studies)
    idle = False

    def complete(study: Study, messages: Sequence[Message]) -> bool:
        about = [message for message in messages if message.study_uid == study.uid]
        cited = {uid for message in about for reading in message.readings for uid in reading.documents}
        return bool(about) and cited <= set(pacs.holding(study.uid).documents)

    def finished() -> bool:
        nonlocal idle
        if not node.process.running:
            raise PeerError(f"the node ended with status {node.process.exit_status}:\n{node.process.log_tail()}")
        messages = read_log(emr.messages())
        for study in studies:
            if study.uid not in present and complete(study, messages):
                present.add(study.uid)
                progress.advance(task)
        if len(present) == len(studies):
            return True
        if idle:
            return True
        # What was done while the node was asked is still to be seen: there is one more round after this answer.
        idle = not expected_known and _nothing_left_to_do(node.status())
        return False

    try:
        # Asking for the status starts a process, so it is asked less often.
        wait_until(finished, deadline, "the results", interval=0.2 if expected_known else 1.0)
    except TimeoutError:
        progress.console.print(f"[red]After {deadline:g} s {len(studies) - len(present)} studies have no result.[/]")


def _nothing_left_to_do(status: dict[str, Any]) -> bool:
    """Whether nothing waits of what the node has taken in, so that no further result can come.

    What it refused is not among it: sending has ended before this is asked, so what is not there never comes.
    """
    return not status["waiting"] and not status["counts"].get("revision", {}).get("ROUTED", 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        # Asked to stop while it was ending anyway.
        sys.exit(130)
