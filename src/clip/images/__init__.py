"""From an image in any form to the pixels that a model reads.

It may import network, jobs and the ground floor; only `preprocess` and `steps` import torch, and `fast` when it runs.
"""
