"""The command line, as ``gwt`` and ``python -m gwt``."""

from __future__ import annotations

import sys

try:
    from .cli import main

    if __name__ == "__main__":
        sys.exit(main())
except KeyboardInterrupt:
    # While it was still starting.
    sys.exit(130)
