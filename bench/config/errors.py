"""The exceptions that mean something to every room: a mistake, a run that was asked to stop, and a GPU that is lost."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what was given (settings, files, weights); the message says what, where and what to do.

    Commands print the message alone and exit with code 2.
    """


class Stopped(Exception):
    """A run was asked to stop. Its state is saved; it continues from there when it is started again."""


class GpuLost(Exception):
    """A CUDA error has made the GPU unusable for this process, which must end: any further run would fail at once.

    The run is not recorded as failed. It continues from its saved state in another process.
    """
