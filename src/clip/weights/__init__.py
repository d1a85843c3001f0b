"""Find, download, verify and read checkpoints, without running anything that is in them.

It may import network, text, jobs and `model`. Only this room and sources/remote use the network.
"""
