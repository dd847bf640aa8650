"""Measurements beside real peers, each printing one table; never part of the tests."""
