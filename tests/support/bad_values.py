"""Values that are no such thing, for arguments of each kind."""

HUGE = 10**20
NOT_WHOLE = ("four", True, float("nan"), float("inf"), HUGE, -1, 0, 2.5, None, [1], {}, b"4")
NOT_NUMBERS = ("four", True, float("nan"), float("inf"), 10**400, None, [1], {}, 1j)
NOT_FLAGS = ("yes", 1, 0, float("nan"), None, [True])
NOT_NAMES = (None, 3, True, [], {}, "", "unknown", b"DEMO-S/2")


def shown(value: object) -> str:
    """For the name of a test."""
    return "huge" if isinstance(value, int) and value >= HUGE else repr(value)
