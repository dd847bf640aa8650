"""Findings become DICOM evidence documents (Comprehensive 3D SR, Segmentation) and are checked before they leave."""
