"""Die of SIGKILL while holding the lock of a folder."""

import os
import signal
import sys
from pathlib import Path

from clip.store.lock import hold_lock

with hold_lock(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
