"""`python -m hgca_cli` and the `hgca` script."""

from __future__ import annotations

import sys

from hgca_cli.app import run


def main() -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
