"""The command `clip`: make jobs of flags, call the verbs, print progress and summaries.

It may import everything; nothing imports it.
"""

from ..foreign_distribution import check_own_package

check_own_package()  # before an import fails for want of a name that another distribution's file lacks
