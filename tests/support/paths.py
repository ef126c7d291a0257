"""Where the tests find what they read: this repository, and the reference data beside it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
GOLDEN = SHARED / "golden"  # StepFun's own numbers
