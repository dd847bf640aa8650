"""DIMSE: receiving over C-STORE and C-ECHO, and sending to other Application Entities."""

#: (0002,0012) of what this software writes, and what it says of itself when it associates (PS3.7 D.3.3.2).
IMPLEMENTATION_CLASS_UID = "2.25.286103871146253046519024153168137041289"
IMPLEMENTATION_VERSION_NAME = "OVERREAD_0_1"

__all__ = ["IMPLEMENTATION_CLASS_UID", "IMPLEMENTATION_VERSION_NAME"]
