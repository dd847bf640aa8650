"""Pixels in, findings out."""
