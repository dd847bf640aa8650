"""Synthetic images with known truth, made by code: for demonstrations, training and tests."""
