"""A small MLLP receiver: stands for the EMR, logs every message, acknowledges it, or misbehaves when told to.

Run it as ``python -m demo.mllp_receiver --port 2575 --log messages.jsonl``. Each message becomes one JSON line
(written before the acknowledgement leaves) with the raw bytes in base64 and the text decoded as MSH-18 says.

``--behave KIND[:N]`` makes it answer the next N messages in that way (without N: all that follow); given several
times, the rules follow one another, and after the last one everything is accepted. Kinds:

====================  =======================================================
AA, AE, AR            acknowledge with that code; AE and AR carry an ERR segment
wrong-id              AA, but MSA-2 names another message
garbage               bytes that are no HL7 message, correctly framed
silence               no answer; the connection stays open
close                 no answer; the connection is closed
====================  =======================================================

MLLP framing and the acknowledgement's segments follow HL7 v2.5.1 (chapter 2, and appendix C of its implementation
guide); table 0211 names the character sets.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import signal
import socketserver
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["HL7_CHARACTER_SETS", "Receiver", "acknowledgement", "frames", "main"]

START, END = b"\x0b", b"\x1c\x0d"
MAXIMUM_BYTES = 32 * 1024 * 1024
KINDS = ("AA", "AE", "AR", "wrong-id", "garbage", "silence", "close")

# HL7 table 0211, as far as Python has the codec.
HL7_CHARACTER_SETS = {
    "": "ascii",
    "ASCII": "ascii",
    **{f"8859/{part}": f"iso8859-{part}" for part in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15)},
    "ISO IR14": "shift_jis",
    "ISO IR87": "iso2022_jp",
    "ISO IR159": "iso2022_jp_1",
    "GB 18030-2000": "gb18030",
    "KS X 1001": "euc_kr",
    "BIG-5": "big5",
    "UNICODE": "utf-8",
    "UNICODE UTF-8": "utf-8",
    "UNICODE UTF-16": "utf-16",
    "UNICODE UTF-32": "utf-32",
}


def frames(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of every MLLP frame in a stream of bytes; what stands outside of frames is skipped."""
    waiting = b""
    for chunk in chunks:
        waiting += chunk
        while True:
            start = waiting.find(START)
            if start < 0:
                waiting = b""
                break
            end = waiting.find(END, start)
            if end < 0:
                waiting = waiting[start:]
                break
            yield waiting[start + 1 : end]
            waiting = waiting[end + 2 :]
        if len(waiting) > MAXIMUM_BYTES:
            return


def header_fields(message: bytes) -> list[str]:
    """Return the fields of the MSH segment, so that index n is MSH-n; the empty list when there is no MSH."""
    line = message.split(b"\r", 1)[0]
    if not line.startswith(b"MSH") or len(line) < 8:
        return []
    separator = line[3:4]
    fields = [part.decode("latin-1") for part in line.split(separator)]
    # MSH-1 is the separator itself: it stands between "MSH" and MSH-2.
    return [fields[0], separator.decode("latin-1"), *fields[1:]]


def decoded(message: bytes) -> tuple[str, str | None]:
    """Return MSH-18 and the text it leads to; None for the text when the bytes are not in that character set."""
    fields = header_fields(message)
    name = fields[18].split("~")[0] if len(fields) > 18 else ""
    codec = HL7_CHARACTER_SETS.get(name)
    if codec is None:
        return name, None
    try:
        return name, message.decode(codec)
    except UnicodeDecodeError:
        return name, None


def acknowledgement(message: bytes, code: str, control_id: str, *, text: str = "", names: str | None = None) -> bytes:
    """Build the ACK for ``message``: MSH with the parties exchanged, MSA, and ERR for a refusal.

    Parameters
    ----------
    message
        What is answered.
    code
        AA, AE or AR.
    control_id
        MSH-10 of the acknowledgement itself.
    text
        The reason of a refusal, for ERR-8.
    names
        The message that MSA-2 claims to answer, where it is not this one.
    """
    fields = [*header_fields(message), *[""] * 20]
    now = datetime.now(UTC).strftime("%Y%m%d%H%M%S+0000")
    trigger = [*fields[9].split("^"), ""][1]
    kind = "^".join(part for part in ("ACK", trigger, "ACK") if part)
    answered = names if names is not None else fields[10]
    version = fields[12] or "2.5.1"
    head = f"MSH|^~\\&|{fields[5]}|{fields[6]}|{fields[3]}|{fields[4]}|{now}||{kind}|{control_id}|{fields[11] or 'P'}"
    segments = [f"{head}|{version}||||||UNICODE UTF-8", f"MSA|{code}|{answered}"]
    if code != "AA":
        error = {
            "AE": "207^Application internal error^HL70357",
            "AR": "200^Unsupported message type^HL70357",
        }[code]
        segments.append(f"ERR|||{error}|E||||{text}")
    return ("\r".join(segments) + "\r").encode()


@dataclass(kw_only=True)
class Behaviour:
    """The rules that say how the next messages are answered; safe to ask from several threads."""

    rules: list[tuple[str, int | None]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Behaviour:
        """Read rules such as ``AE:2`` or ``silence``; ValueError names the one that is wrong."""
        rules: list[tuple[str, int | None]] = []
        for text in texts:
            kind, _, count = text.partition(":")
            if kind not in KINDS or (count and not count.isdigit()):
                raise ValueError(f"rule {text!r}: expected KIND or KIND:N with KIND one of {', '.join(KINDS)}")
            rules.append((kind, int(count) if count else None))
        return cls(rules=rules)

    def next(self) -> str:
        """Return the kind of the next answer."""
        with self._lock:
            while self.rules:
                kind, left = self.rules[0]
                if left is None:
                    return kind
                if left > 0:
                    self.rules[0] = (kind, left - 1)
                    return kind
                del self.rules[0]
            return "AA"


class Receiver(socketserver.ThreadingTCPServer):
    """Listens, logs and answers; a connection may carry any number of messages."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], log: Path, behaviour: Behaviour) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.behaviour = behaviour
        self.write_lock = threading.Lock()
        self.numbers = itertools.count(1)
        super().__init__(address, Conversation)

    def answer(self, message: bytes) -> tuple[str, bytes | None]:
        """Log a message and return the kind of answer and its bytes (None: say nothing)."""
        kind = self.behaviour.next()
        own_id = f"ACK{next(self.numbers)}"
        reply: bytes | None
        if kind in {"AA", "AE", "AR"}:
            reply = acknowledgement(message, kind, own_id, text="The receiver was told to refuse this message")
        elif kind == "wrong-id":
            reply = acknowledgement(message, "AA", own_id, names="NO-SUCH-MESSAGE")
        elif kind == "garbage":
            reply = b"this is \xff\xfe no HL7 message"
        else:
            reply = None
        fields = [*header_fields(message), *[""] * 20]
        character_set, text = decoded(message)
        record = {
            "received_at": datetime.now(UTC).isoformat(),
            "control_id": fields[10],
            "message_type": fields[9],
            "character_set": character_set,
            "text": text,
            "raw": base64.b64encode(message).decode("ascii"),
            "acknowledgement": kind,
            "answer": None if reply is None else base64.b64encode(reply).decode("ascii"),
        }
        with self.write_lock, self.log.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
        return kind, reply


class Conversation(socketserver.BaseRequestHandler):
    """One connection."""

    server: Receiver

    def handle(self) -> None:
        """Answer every frame until the peer hangs up."""

        def chunks() -> Iterator[bytes]:
            while True:
                try:
                    chunk = self.request.recv(65536)
                except OSError:
                    return
                if not chunk:
                    return
                yield chunk

        for message in frames(chunks()):
            kind, reply = self.server.answer(message)
            if kind == "close":
                return
            if reply is not None:
                self.request.sendall(START + reply + END)


def main(arguments: list[str] | None = None) -> int:
    """Listen until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="Listen for HL7 messages over MLLP, log them and acknowledge them.")
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=2575)
    parser.add_argument("--log", type=Path, default=Path("messages.jsonl"), help="one JSON line a message")
    parser.add_argument("--behave", action="append", default=[], metavar="KIND[:N]", help=f"one of {', '.join(KINDS)}")
    options = parser.parse_args(arguments)
    try:
        behaviour = Behaviour.parse(options.behave)
    except ValueError as error:
        parser.error(str(error))
    with Receiver((options.bind, options.port), options.log, behaviour) as receiver:
        # shutdown() waits for serve_forever to notice, so it must not run on the thread that serves.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: threading.Thread(target=receiver.shutdown).start())
        print(f"listening on {options.bind}:{receiver.server_address[1]}", flush=True)
        receiver.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
