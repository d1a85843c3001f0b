"""Runs over whole inputs: embed, verify, tune.

It may import everything but retrieval and cli.
"""

from ..foreign_distribution import check_own_package

check_own_package()  # before an import fails for want of a name that another distribution's file lacks
