"""The arguments of `lm_eval` go in; its output comes out, with the model `urial` known to it."""

from __future__ import annotations

import sys

from lm_eval.__main__ import cli_evaluate

from ...errors import UrialError


def main() -> None:
    """Releases of the harness up to 0.4.13 look for no models outside their own package."""
    try:
        cli_evaluate()
    except UrialError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
