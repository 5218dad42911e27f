"""The C library's memory of a process that computes on a CPU."""

import ctypes
import platform

OPTIONS = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**26), "M_MMAP_MAX": (-4, 0)}  # of malloc.h
_is_kept = False


def keep_freed_memory() -> None:
    """Has glibc keep what tensors free, for all of the process and as long as it lives.

    By itself glibc returns large freed blocks to the system and gets each next one with pages that fault on first use,
    which on a CPU can cost an activation more than its arithmetic.

    Raises:
        RuntimeError: if the C library is not glibc or refuses.
    """
    global _is_kept
    if platform.libc_ver()[0] != "glibc":
        raise RuntimeError("keep_freed_memory() sets options of glibc, and this Python runs on another C library.")
    library = ctypes.CDLL(None)
    for name, (number, value) in OPTIONS.items():
        if not library.mallopt(number, value):
            raise RuntimeError(f"glibc refuses mallopt({name}, {value}).")
    _is_kept = True


def is_memory_kept() -> bool:
    return _is_kept
