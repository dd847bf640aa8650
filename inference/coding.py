"""Whether a code can be one: its coding scheme is known, and a SNOMED CT identifier has its length and check digit.

A wrong code does not look wrong in a report; a slip of a digit is another disorder, or none. So what can be seen of it
without a terminology server is looked at when a card is read.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["OPEN_SCHEME", "why_no_code"]

#: The coding scheme of a code that nobody has filled in; no document may carry it.
OPEN_SCHEME: Final = "99OPEN"

#: Coding scheme designators of PS3.16 Table 8-1, among them those of codes that DICOM itself uses.
_SCHEMES: Final = frozenset(
    """
    ACR ASTM-sigpurpose BARI BI C4 C5 CD2 CTV3 DC DCM DCMUID FMA HPC I10 I10P I11 I9 I9C IBSI ICDO ICDO3 ISO_OID
    ISO3166_1 ISO639_1 ISO639_2 ITIS_TSN LN MA MAYOASRG MDC MDNS MGI MSH NCIt NDC NEU NICIP NYUMCCG PATHLEX POS
    PUBCHEM_CID RADELEMENT RADLEX RFC3066 RFC5646 RO RXNORM SCT SCPECG SDM SNM3 SRT TA98 UBERON UCUM UMLS UNS
    UPC V3 VANDF X.500 XNAT
    """.split()  # noqa: SIM905 - 60 of them
)
#: Tables of HL7 v2 by their number, which PS3.16 section 8 allows too.
_HL7_TABLE: Final = re.compile(r"HL7\d{4}")
#: What people write, and the designator that they mean.
_MEANT: Final = {
    "SNOMED": "SCT",
    "SNOMEDCT": "SCT",
    "SNOMED CT": "SCT",
    "SNOMED-CT": "SCT",
    "LOINC": "LN",
    "DICOM": "DCM",
    "RADLEX": "RADLEX",
    "RID": "RADLEX",
    "NCIT": "NCIt",
    "ICD10": "I10",
    "ICD-10": "I10",
}
_TURNS: Final = ("1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258")


def why_no_code(value: str, scheme: str) -> str:
    """Return why a code value and its coding scheme designator can be no code; "" where nothing speaks against it."""
    if not scheme.startswith("99") and scheme not in _SCHEMES and not _HL7_TABLE.fullmatch(scheme):
        meant = _MEANT.get(scheme.upper()) or next((one for one in _SCHEMES if one.upper() == scheme.upper()), "")
        hint = (
            f"write {meant}" if meant else "expected SCT, RADLEX, DCM, LN, ... or one of your own that begins with 99"
        )
        return f"the scheme {scheme!r} is no coding scheme designator (PS3.16 section 8): {hint}"
    if scheme != "SCT":
        return ""
    if not re.fullmatch(r"[1-9][0-9]{5,17}", value):
        return f"{value!r} is no SNOMED CT identifier: expected 6 to 18 digits, not words"
    return (
        "" if _checks(value) else f"{value!r} is no SNOMED CT identifier: its check digit is wrong, so look it up again"
    )


def _checks(digits: str) -> bool:
    """Whether the last digit is the check digit of the others, by Verhoeff's dihedral scheme.

    SNOMED CT Technical Implementation Guide, "Check-digit".
    """
    check = 0
    for place, digit in enumerate(reversed(digits)):
        number = int(digit)
        check = _product(check, int(_TURNS[(place - 1) % 8][number]) if place % 8 else number)
    return check == 0


def _product(a: int, b: int) -> int:
    """Return the product in the dihedral group of order 10: turns are 0 to 4, reflections 5 to 9."""
    if a < 5:
        return (a + b) % 5 + (5 if b >= 5 else 0)
    return (a - b) % 5 + (5 if b < 5 else 0)
