"""The fast path of `model.encode_image` and `model.encode_text`: the lean graph, wherever it gives what eager gives.

It may import engine, network, jobs and the ground floor. `model` calls it, and hands it the network's layout.
"""
