"""Fetch a weights file into a cache and print its path."""

import sys

from clip.weights import locate

url, root = sys.argv[1:]
print(locate.ensure_cached(url, root))
