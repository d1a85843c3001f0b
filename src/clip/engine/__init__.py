"""A checkpoint's folded graph on a device at a precision: batches in, features out.

It may import network, text, jobs and `model`.
"""
