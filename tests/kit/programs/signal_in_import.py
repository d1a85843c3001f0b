"""A sitecustomize.py: send a signal to this process when it begins to import a module."""

import os
import sys

MODULE, NUMBER = os.environ["CLIP_TEST_AT"].split(":")
came = False


def look(event: str, arguments: tuple[object, ...]) -> None:
    global came
    if event == "import" and arguments[0] == MODULE and not came:
        came = True
        os.kill(os.getpid(), int(NUMBER))


sys.addaudithook(look)
