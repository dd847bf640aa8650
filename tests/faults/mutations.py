"""Ways in which bytes go wrong: bits turned over, lengths that lie, pieces cut off, doubled, moved and mixed in."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from random import Random

__all__ = ["lie", "mutate"]

_NUMBERS = (0, 1, 2, 3, 6, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x101, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x10000)
_LONG_NUMBERS = (*_NUMBERS, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_TEXTS = (
    b"\x1b$B",
    b"\x1b(I\xff\xfe",
    b"\\",
    b"\\" * 300,
    b"=" * 40,
    b"^" * 70,
    b"\0",
    b"\xed\xa0\x80",  # a surrogate, which is no UTF-8
    b"\xf0\x9f\x92\x8a",
    b"ISO 2022 IR 87",
    b"nan",
    b"1e400",
    b"-" * 20,
    b"99999999999999999999",
    b"1.2.3" + b".4" * 60,
    b"..",
    b"%s%n{0}",
    b"\xfe\xff\x00\xe0\xff\xff\xff\xff",  # an item of undefined length
    b"\xfe\xff\x0d\xe0\0\0\0\0",
    b"\xfe\xff\xdd\xe0\0\0\0\0",
)


def lie(dice: Random, length: int) -> int:
    """Return a length of four bytes that is not the right one."""
    return dice.choice((0, 1, length - 1, length + 1, length + 2, length * 2, *_LONG_NUMBERS)) & 0xFFFFFFFF


def mutate(dice: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return the bytes with a few things wrong; ``others`` are what pieces are taken from."""
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        data = dice.choice(_MUTATIONS)(dice, data, others or (data,))
    return data


def _span(dice: Random, data: bytes, longest: int = 256) -> tuple[int, int]:
    begin = dice.randrange(len(data) + 1)
    return begin, min(len(data), begin + dice.randint(1, longest))


def _flip(dice: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    if not data:
        return b"\0"
    changed = bytearray(data)
    changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _number(dice: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    form, known = dice.choice(
        ((">B", _NUMBERS), ("<H", _NUMBERS), (">H", _NUMBERS), ("<L", _LONG_NUMBERS), (">L", _LONG_NUMBERS))
    )
    size = struct.calcsize(form)
    at = dice.randrange(max(1, len(data) - size + 1))
    return data[:at] + struct.pack(form, dice.choice(known) & ((1 << 8 * size) - 1)) + data[at + size :]


def _cut(dice: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    begin, end = _span(dice, data)
    return data[:begin] + data[end:]


def _end(dice: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def _double(dice: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    begin, end = _span(dice, data)
    return data[:end] + data[begin:end] * dice.choice((1, 1, 2, 40)) + data[end:]


def _noise(dice: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    begin, end = _span(dice, data, 16)
    return data[:begin] + dice.randbytes(dice.randint(1, 16)) + data[dice.choice((begin, end)) :]


def _text(dice: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    text = dice.choice(_TEXTS)
    at = dice.randrange(len(data) + 1)
    return data[:at] + text + data[dice.choice((at, at + len(text))) :]


def _splice(dice: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = dice.choice(others)
    begin, end = _span(dice, other, 1024)
    at, to = _span(dice, data)
    return data[:at] + other[begin:end] + data[dice.choice((at, to)) :]


def _swap(dice: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    a, b, c = sorted(dice.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


_MUTATIONS: tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flip,
    _flip,
    _number,
    _number,
    _cut,
    _end,
    _double,
    _noise,
    _text,
    _text,
    _splice,
    _swap,
)
