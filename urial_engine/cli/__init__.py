"""The command line. `sys.argv` goes in; an exit code comes out: 0, 1 for an error, 2 for wrong
usage.

Commands are thin over the public calls, and import what is heavy only when they run.
"""

from .app import main

__all__ = ["main"]
