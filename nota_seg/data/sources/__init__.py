"""Data sets, found by looking. A new layout is one file and one line in `LAYOUTS`."""

from __future__ import annotations

from pathlib import Path

from nota_seg.data.sources.ade20k import Ade20k
from nota_seg.data.sources.base import IGNORE, SegmentationSource, unknown_layout
from nota_seg.data.sources.coco import Coco
from nota_seg.data.sources.folders import ImageMask, ImagesMasks
from nota_seg.data.sources.hub import Hub
from util.errors import InputError

__all__ = ["IGNORE", "LAYOUTS", "SegmentationSource", "open_source"]

LAYOUTS: list[type[SegmentationSource]] = [Ade20k, ImageMask, ImagesMasks, Coco, Hub]  # asked in this order


def open_source(path: str | Path, layout: str | None = None, *, strict: bool = True) -> SegmentationSource:
    """Open a data set in whatever layout it has.

    Args:
        path: A folder, a file (COCO JSON, parquet), or a hub id "owner/name".
        layout: The `key` of a layout, to skip the looking.
        strict: Refuse a set with missing masks or pictures and repeated names; `verify` lists them instead.

    Raises:
        InputError: Nothing known is there, or it has problems.
    """
    given, path = str(path), Path(path).expanduser()
    kind = _by_key(layout) if layout is not None else next((k for k in LAYOUTS if k.detect(path)), None)
    if kind is None:
        raise InputError(_nothing_found(given, path))
    if not path.exists() and kind is not Hub:
        raise InputError(f"{given}: no such folder")
    source = kind(path)  # type: ignore[call-arg]  # every layout is built from its path alone
    problems = source.all_problems()
    if strict and problems:
        more = f" (and {len(problems) - 1} more: nota-seg data verify lists them)" if len(problems) > 1 else ""
        raise InputError(problems[0] + more)
    if strict and not source.splits:
        raise InputError(f"{given}: looks like {source.layout} but has no pictures")
    return source


def _by_key(layout: str) -> type[SegmentationSource]:
    keys = {kind.key: kind for kind in LAYOUTS}
    if layout not in keys:
        raise unknown_layout(layout, keys)
    return keys[layout]


def _nothing_found(given: str, path: Path) -> str:
    if not path.exists():
        return f"{given}: no such file or folder, and not a hub id owner/name"
    looked = "; ".join(f"{kind.key}: {kind.wants}" for kind in LAYOUTS)
    entries = sorted(p.name + "/" * p.is_dir() for p in path.iterdir()) if path.is_dir() else [path.name]
    found = ", ".join(entries[:12]) + (f", ... ({len(entries)} entries)" if len(entries) > 12 else "")
    hints = [hint for kind in LAYOUTS if (hint := kind.near_miss(path))]
    if path.is_dir():
        inside = [p for p in sorted(path.iterdir())[:50] if p.is_dir() and any(k.detect(p) for k in LAYOUTS)]
        if inside:
            hints.append(f"did you mean {' or '.join(map(str, inside[:3]))}?")
    near = f" Near: {'; '.join(hints)}" if hints else ""
    return f"{given}: no data set found.{near} Found: {found or 'nothing'}. Looked for {looked}"
