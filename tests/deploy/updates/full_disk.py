"""A device's update on a disk that fills up while it runs: as if another program wrote there, room is not checked before."""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.updates.device import fetch
from deploy.updates.device.store import Device
from deploy.updates.device.update import update
from everlearn.errors import Unavailable

fetch.refuse_full_disk = lambda *_: None
try:
    print("updated to", update(Device(Path(sys.argv[1]))).version)
except Unavailable as error:
    print("refused: Unavailable:", error.message)
