"""`python -m hgca_cli` and the `hgca` script."""

from __future__ import annotations

import os
import sys

from hgca_cli.app import run


def main() -> None:
    """Run the command line and end the process with its exit code."""
    if sys.platform == "linux":  # before torch: else pieces of freed memory too small to use add up to half a GiB
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
