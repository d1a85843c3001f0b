"""Spell records as JSON that people read too: a name in any script stays what it is."""

from __future__ import annotations

import json
import sys


def to_json(record: object) -> str:
    """Return a record as one line of JSON; what stdout or stderr cannot spell is escaped."""
    line = json.dumps(record, ensure_ascii=False, default=str)
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            line.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:  # another encoding than UTF-8, or bytes of a name that are not UTF-8
        return json.dumps(record, default=str)
    return line
