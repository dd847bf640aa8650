"""Tells other systems what was found: HL7 v2 results over MLLP."""
