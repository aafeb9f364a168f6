import os
import platform
from pathlib import Path

import numpy as np
import pytest

from util.memory import give_back_freed_memory, keep_freed_memory


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of Linux's C library")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    keep_freed_memory()
    blocks = [np.ones(1 << 20) for _ in range(4)]  # 32 MB
    used = resident()
    del blocks
    assert resident() > used - (8 << 20)
    give_back_freed_memory()
    assert resident() < used - (24 << 20)
