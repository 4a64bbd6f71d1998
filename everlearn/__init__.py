"""The kernel of everlearn: bundles, the registry, settings, errors and the command line."""

import os

# onnxruntime's wheels for Linux send events to their maker unless this is set before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
