"""What a user names as input to entries, and an entry to its bytes.

It may import images, network and jobs; never torch, never the store.
"""
