"""The command line: one command a verb. Parse, call, exit code."""

from __future__ import annotations

from holdfast.cli.main import app, main

__all__ = ["app", "main"]
