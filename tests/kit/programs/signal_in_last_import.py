"""Be interrupted inside an import that is the last thing, and look whether a second exception comes."""

import time

from clip.cli.signals import LOOK_AGAIN_S, InterruptedBySignal, interruptible

IMPORT = compile("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "<frozen importlib._bootstrap>", "exec")

try:
    with interruptible():
        exec(IMPORT)
except InterruptedBySignal as exc:
    time.sleep(4 * LOOK_AGAIN_S)
    print(exc.code)
