"""Run the command as `python -m clip` does, and end with an error if that imported torch."""

import runpy
import sys

sys.argv[0] = "clip"
try:
    runpy.run_module("clip", run_name="__main__")
except SystemExit as end:
    sys.exit(end.code or "torch" in sys.modules)
