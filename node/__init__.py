"""Protocols and orchestration; the only package that knows the other two."""
