"""``python -m rlmerge`` is ``rlmerge``."""

import sys

from rlmerge.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
