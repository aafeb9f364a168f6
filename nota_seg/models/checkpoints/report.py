"""What became of every tensor when weights were put into a model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TransferReport:
    """Keys are the model's, but for `unused`, which are the file's.

    Attributes:
        source: The file or folder.
        format: The format that was recognised.
        matched: Filled from a key of the same name.
        renamed: Filled from a key of another name: ours to theirs.
        reshaped: Filled after a change of shape (a 1x1 convolution and a Linear hold the same numbers).
        resized: Filled after a change of resolution (position tables): ours to theirs.
        reinitialised: Not filled; they keep their fresh values.
        unused: Of the file, without a place in the model.
        per_stage: Share of the parameters that was filled, per cent, by part of the model.
        per_role: The same for each stage by role in it: stem, mixer, feedforward, skip (its norms), norm; `blocks`
            where a stage has blocks of their own kinds.
    """

    source: str
    format: str
    matched: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    reshaped: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    reinitialised: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    per_stage: dict[str, float] = field(default_factory=dict)
    per_role: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def filled(self) -> list[str]:
        """All keys of the model that came from the file."""
        return [*self.matched, *self.renamed, *self.reshaped, *self.resized]

    def __str__(self) -> str:
        def some(keys: list[str]) -> str:
            return f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else ""

        def shares(parts: dict[str, float]) -> str:
            return ", ".join(f"{part} {share:.0f}%" for part, share in parts.items())

        resized = f", {len(self.resized)} resized" if self.resized else ""
        lines = [
            f"weights from {self.source} ({self.format})",
            f"  {len(self.matched)} matched, {len(self.renamed)} renamed, {len(self.reshaped)} reshaped{resized}",
            f"  {len(self.reinitialised)} reinitialised{some(self.reinitialised)}",
            f"  {len(self.unused)} unused{some(self.unused)}",
            "  filled: " + shares(self.per_stage),
        ]
        lines += [
            f"    {stage}: {shares(roles)}" for stage, roles in self.per_role.items() if min(roles.values()) < 100
        ]
        return "\n".join(lines)
