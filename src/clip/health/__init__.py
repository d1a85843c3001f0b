"""Tell whether a model and a machine are what they should be: `clip models --check`, `clip doctor`.

It may import the encoder and what is below it.
"""
