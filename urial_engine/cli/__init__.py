"""The command line. Enters `sys.argv`, leaves an exit code: 0, 1 for an error, 2 for wrong usage.

Commands are thin over the public calls, and import what is heavy only when they run.
"""

from .app import main

__all__ = ["main"]
