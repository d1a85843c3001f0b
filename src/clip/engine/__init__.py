"""Run the folded graph of a checkpoint on a device at a precision: batches in, features out.

It may import network, text, jobs and `model`.
"""
