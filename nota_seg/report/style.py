"""What the page and the static plots share: colours, markers, the cost front."""

from __future__ import annotations

from collections.abc import Iterable

# Okabe and Ito's colours, told apart with any colour vision; darkened to 3:1 on white at least, or lightened on black.
LIGHT = ["#0072b2", "#c24e00", "#00805c", "#b0528a", "#8a6d00", "#2c86bd", "#5b5b5b", "#7a3fb0"]
DARK = ["#56b4e9", "#ff8c42", "#2fc79a", "#e59cc8", "#e6b422", "#8ecbf0", "#b8b8b8", "#b99af0"]
MARKERS = ["circle", "square", "triangle", "diamond", "cross"]  # with eight colours: forty looks before one comes again


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (cost, score) that no other beats in both, by rising cost."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front
