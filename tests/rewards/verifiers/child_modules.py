"""A check that runs in a child: what the child has imported."""

import sys


def imported():
    return sorted(name for name in sys.modules if "." not in name)
