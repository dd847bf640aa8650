"""Bringing a model from elsewhere: reading what it is made of, and writing a folder with its card."""
