"""The drawn world of `clip demo` and of the sketch model.

It may import jobs and the ground floor.
"""
