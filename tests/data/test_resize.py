from __future__ import annotations

import numpy as np
import pytest

from nota_seg.data.resize import resize_for_eval


@pytest.mark.parametrize(
    ("size", "base", "expected"),
    [
        ((480, 640), (2048, 512), (512, 683)),
        ((640, 480), (2048, 512), (683, 512)),
        ((100, 1000), (2048, 512), (205, 2048)),
        ((512, 700), (2048, 512), (512, 700)),
        ((123, 45), None, (123, 45)),
    ],
)
def test_resize_for_eval(size: tuple[int, int], base: tuple[int, int] | None, expected: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), dtype=np.uint8)
    assert resize_for_eval(image, base).shape[:2] == expected
