"""The version of PETL-Bench: the one place where it is written. `pyproject.toml` reads it from here."""

VERSION = "0.2.0.dev0"
