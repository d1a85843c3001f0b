"""What a model is: shapes to arguments, a network laid out without memory, and the records of both.

It may import the ground floor.
"""
