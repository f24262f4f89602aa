"""Settings of the allocators: training frees and requests the same buffers in every step."""

from __future__ import annotations

import ctypes
import functools
import os

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_LARGE_BYTES = 32 << 20  # the highest threshold that glibc accepts
_TOP_PAD_BYTES = 256 << 20


@functools.cache
def keep_freed_memory(*, large: bool = True) -> bool:
    """Let glibc's allocator keep freed memory instead of returning it to the system.

    By default, glibc returns every freed block of more than 32 MB to the system, and smaller ones
    depending on the order of calls. The next block has new pages, which the system clears one by
    one on first use. That can take several times longer than the op that writes the block. Call
    this function once, at the start of a program that calls ops or trains; ``mmssl train`` and
    ``mmssl tune`` do. Further calls have no effect.

    The setting applies to the whole process and can't be undone. From then on the process keeps its
    peak size, and grows in steps of 256 MB of address space, which are only backed by memory where
    they are used. Memory on a GPU is not affected.

    Args:
        large: Also keep freed blocks of 32 MB or more. They cost the most time, but a kept block
            can rarely be used again as a whole: glibc 2.36 needs a slightly larger one for a block
            of the same size, because of its alignment, so the process holds more than it uses.
            If False, torch asks the system for pages of 2 MB, which need fewer page faults, unless
            it has created a tensor before or ``THP_MEM_ALLOC_ENABLE`` is set.

    Returns:
        Whether the allocator accepted the setting; False, without any effect, if the C library is
        not glibc (macOS, Alpine Linux).

    Example:
        >>> import mmssl
        >>> mmssl.keep_freed_memory()
        True
    """
    try:
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version  # others have a mallopt with another meaning
        mallopt = library.mallopt
    except (AttributeError, OSError):
        return False
    if large:
        settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: _TOP_PAD_BYTES}
    else:  # with less than a large block at the end of the heap, which would be used for one
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        settings = {_M_MMAP_THRESHOLD: _LARGE_BYTES, _M_TRIM_THRESHOLD: _LARGE_BYTES}
    return all([mallopt(name, value) for name, value in settings.items()])
