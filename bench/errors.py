"""The one exception that means "the user can fix this": entry points print it alone and exit with code 2."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what was given (settings, files, weights); the message says what, where and what to do."""
