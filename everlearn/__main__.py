"""``python -m everlearn``."""

import sys
from pathlib import Path

# ``-m`` puts the working directory first: a user's own train.py there must not stand in for a room.
if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
    del sys.path[0]

from everlearn.cli import main

if __name__ == "__main__":
    main()
