"""Print the modules that `import clip` loads, as JSON."""

import json
import sys

before = set(sys.modules)
import clip  # noqa: E402, F401

print(json.dumps(sorted(set(sys.modules) - before)))
