"""Reads HL7 v2 messages back into plain text, to see what really arrived; shares no code with who writes them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Segment", "read_message"]

Components = list[str]


@dataclass(frozen=True)
class Segment:
    """A segment: its name and its fields, each a list of repetitions, each a list of unescaped components.

    Subcomponents are left joined by their separator.
    """

    name: str
    fields: tuple[tuple[Components, ...], ...]

    def repetitions(self, number: int) -> tuple[Components, ...]:
        """Return all repetitions of field ``number`` (1 is the first after the segment's name)."""
        return self.fields[number - 1] if number <= len(self.fields) else ()

    def field(self, number: int, component: int = 1) -> str:
        """Return one component of a field's first repetition, or the empty string."""
        repetitions = self.repetitions(number)
        if not repetitions or component > len(repetitions[0]):
            return ""
        return repetitions[0][component - 1]


def read_message(raw: bytes, codec: str = "utf-8") -> list[Segment]:
    """Split a message by the delimiters that its own MSH declares (HL7 v2.5.1, 2.5), and undo the escapes (2.7).

    MSH is left out: its numbering differs, and whoever logs a message logs what it says. Raises ValueError for bytes
    that do not begin with MSH.
    """
    text = raw.decode(codec)
    if not text.startswith("MSH") or len(text) < 8:
        raise ValueError("no HL7 message: it does not begin with MSH and its delimiters")
    separator, component, repetition, escape, sub = tuple(text[3:8])
    meaning = {"F": separator, "S": component, "R": repetition, "E": escape, "T": sub}

    def plain(value: str) -> str:
        # Every second piece stood between two escape characters.
        pieces = value.split(escape)
        return "".join(meaning.get(piece, "") if index % 2 else piece for index, piece in enumerate(pieces))

    segments = []
    for line in text.split("\r"):
        name, *fields = line.split(separator)
        if name and name != "MSH":
            read = tuple(
                tuple([plain(each) for each in part.split(component)] for part in field.split(repetition))
                for field in fields
            )
            segments.append(Segment(name, read))
    return segments
