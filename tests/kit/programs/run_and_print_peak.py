"""Run the command and print the peak of its memory in bytes."""

import sys
from pathlib import Path

from clip.cli.main import main

try:
    main(sys.argv[1:])
finally:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(1024 * int(status["VmHWM"].split()[0]))
