"""An image in any form to the pixels a model reads.

It may import network and jobs; only `preprocess` imports torch.
"""
