"""Find, download, verify and read checkpoints, without running anything that is in them.

`locate` finds and fetches, `download` speaks HTTP, `checkpoints` reads what is on the disk, `layouts` translates other
projects' names and configurations.

It may import network, text, jobs and `model`. Only this room and sources/remote use the network.
"""
