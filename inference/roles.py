"""Several series of one study, each in its role, on one grid: what a model of many channels reads.

The first role of the card that is not optional is the reference: the others are brought to its grid, and masks come
back on its images. Series of one frame of reference (0020,0052) lie right by their headers; others are registered, and
refused where that does not hold (:mod:`inference.registration`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inference import gate
from inference.admission import Held
from inference.errors import InputRefused
from inference.grid import Grid, resample
from inference.registration import register
from inference.volume import AIR_HU, Volume, read_volume

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.engine import ImageFile
    from inference.inputs import InputRole

__all__ = ["RoleVolumes", "read_roles"]

#: At least so much of the reference's field has to lie in each other role's.
_SHARED_FIELD = 0.5


@dataclass(frozen=True, slots=True)
class RoleVolumes:
    """The volumes of an input set on the grid of one of them.

    Attributes
    ----------
    reference
        The volume whose grid it is, whose coverage is told and on whose images masks come back.
    arrays
        Each given role's values on that grid, in the card's order. The reference's is its own array, others are
        float32; beyond a role's field stands air (-1024 HU) for a CT and 0 for anything else.
    fields
        Where each given role's values are of its images, on that grid; None where that is everywhere.
    images
        The images of all roles, the reference's first, without localizers that were left out.
    left_out
        Those.
    unknown
        What the card asks for and the images do not tell, where it may be unknown.
    warnings
        What was registered, and how far it moved. Both are to be said with the findings.
    """

    reference: Volume
    arrays: Mapping[str, npt.NDArray[Any]]
    fields: Mapping[str, npt.NDArray[np.bool_] | None]
    images: tuple[str, ...]
    left_out: tuple[str, ...]
    unknown: tuple[str, ...]
    warnings: tuple[str, ...]


def read_roles(
    roles: Sequence[InputRole], input_set: Mapping[str, Sequence[ImageFile]], *, textless: bool = False
) -> RoleVolumes:
    """Read the volumes of an input set and bring them to one grid.

    Parameters
    ----------
    roles
        The card's, of kind volume, in its order.
    input_set
        Role to its images; optional roles may be absent.
    textless
        Read no image that says that text is burned into it (:func:`inference.outgoing.keeps_text`).

    Raises
    ------
    InputRefused
        ``missing-role`` naming those that are; ``roles-apart`` where a role does not cover the
        reference's field; the reasons of :mod:`inference.gate`, of :func:`inference.volume.read_volume` and
        :func:`inference.registration.register`, with the role's name in their words.
    """
    missing = [role.role for role in roles if not role.optional and not input_set.get(role.role)]
    if missing:
        raise InputRefused("missing-role", f"no series was given for {', '.join(missing)}")
    first = next(role for role in roles if not role.optional)
    volumes: dict[str, Volume] = {}
    unknown: dict[str, None] = {}
    reference = _read(first, input_set[first.role], unknown, named=len(roles) > 1, textless=textless)
    arrays: dict[str, npt.NDArray[Any]] = {}
    fields: dict[str, npt.NDArray[np.bool_] | None] = {first.role: reference.scanned}
    warnings: list[str] = []
    for role in roles:
        if role is first:
            volumes[role.role], arrays[role.role] = reference, reference.array
        elif input_set.get(role.role):
            volume = _read(role, input_set[role.role], unknown, named=True, textless=textless)
            arrays[role.role], fields[role.role], said = _on(reference, volume, role.role)
            warnings.extend(said)
            volumes[role.role] = volume
    given = [reference, *(volume for volume in volumes.values() if volume is not reference)]
    return RoleVolumes(
        reference=reference,
        arrays=arrays,
        fields=fields,
        images=tuple(dict.fromkeys(key for volume in given for key in volume.images)),
        left_out=tuple(dict.fromkeys(key for volume in given for key in volume.left_out)),
        unknown=tuple(unknown),
        warnings=tuple(warnings),
    )


def _read(
    role: InputRole, files: Sequence[ImageFile], unknown: dict[str, None], *, named: bool, textless: bool
) -> Volume:
    held = Held(role, textless=textless)
    try:
        volume = read_volume(files, minimum=role.minimum_instances, hold=held.image)
        gate.volume(role, volume.coverage)
    except InputRefused as refusal:
        if not named:
            raise
        raise InputRefused(refusal.reason, f"{role.role}: {refusal.text}", refusal.code) from refusal
    unknown |= dict.fromkeys(held.words)
    return volume


def _on(
    reference: Volume, volume: Volume, role: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None, list[str]]:
    """Return a volume's values on the reference's grid, where they are its own, and what has to be said about them."""
    there, said = reference.grid, []
    if not volume.frame_of_reference or volume.frame_of_reference != reference.frame_of_reference:
        found = register(reference.array, reference.grid, volume.array, volume.grid, role)
        there = Grid(there.shape, found.matrix @ there.affine)
        said.append(
            f"{role} lies in another frame of reference and was registered to the first role: moved by "
            f"{found.moved_mm:.1f} mm, turned by {found.turned_degrees:.1f} degrees"
        )
    shared = there.share_within(volume.grid)
    if shared < _SHARED_FIELD:
        raise InputRefused(
            "roles-apart",
            f"{role} covers {100 * shared:.0f} % of the first role's field; at least {100 * _SHARED_FIELD:.0f} % is "
            "needed",
        )
    outside = float(AIR_HU) if volume.array.dtype == np.int16 else 0.0
    if there.matches(volume.grid):
        return volume.array.astype(np.float32, copy=False), volume.scanned, said
    values = resample(volume.array, volume.grid, there, outside=float("nan"))
    field = ~np.isnan(values)
    values[~field] = outside
    if volume.scanned is not None:
        field &= resample(volume.scanned.view(np.uint8), volume.grid, there, interpolation="nearest").view(np.bool_)
    return values, None if field.all() else field, said
