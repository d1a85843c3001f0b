"""The drawn scenes of `clip demo` and of the sketch model: what they show, what captions say, how they are drawn.

It may import jobs and the ground floor.
"""
