"""The program as a script of its own."""

from autoplan.emit.script import emit_script

__all__ = ["emit_script"]
