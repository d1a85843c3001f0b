"""Find, download, verify and read checkpoints, without running anything that is in them.

`locate` finds and fetches, `download` speaks HTTP, `checkpoints` reads what is on the disk: `folders` finds the files,
`torch_file` and `restricted_pickle` read them, `entries` and `layouts` find the CLIP in them, and `configurations`,
`architectures` and `origin` say which network it is.

It may import network, text, jobs and `model`. Only this room and sources/remote use the network.
"""
