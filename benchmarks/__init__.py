"""Measurements and long checks that are no part of the test suite."""
