"""The web side of the node: one application for DICOMweb, the API, health and metrics."""
