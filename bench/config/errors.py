"""The exceptions that mean something to every room: a mistake of the user's, and a run that was asked to stop."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what was given (settings, files, weights); the message says what, where and what to do.

    Commands print the message alone and exit with code 2.
    """


class Stopped(Exception):
    """A run was asked to stop. Its state is saved; it continues from there when it is started again."""
