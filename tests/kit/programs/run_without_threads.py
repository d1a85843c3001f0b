"""Run the command where the system starts no more threads; root is another user then, as no limit holds for root."""

import os
import resource
import sys

from clip.cli.main import main

if os.getuid() == 0:
    os.setgid(65_501)
    os.setuid(65_501)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
main(sys.argv[1:])
