"""Run the folded graph of a checkpoint on a device at a precision: batches in, features out.

It may import network, text, jobs and `model`.
"""

from ..foreign_distribution import check_own_package

check_own_package()  # before an import fails for want of a name that another distribution's file lacks
