"""A measured figure, its floor, and how they are printed."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field


@dataclass
class Figure:
    """`values` and `floor` in `unit`; measured in turn."""

    what: str
    unit: str
    values: list[float]
    floor: list[float] = field(default_factory=list)
    floor_is: str = ""
    aim: str = ""

    def plain(self) -> dict[str, object]:
        return asdict(self) | {"median": statistics.median(self.values), "ratio": self.ratio()}

    def ratio(self) -> float | None:
        return statistics.median(self.values) / statistics.median(self.floor) if self.floor else None


def table(figures: list[Figure]) -> str:
    lines = []
    for f in figures:
        ratio = f.ratio()
        beside = f"   floor {_spread(f.floor)} ({f.floor_is}), ratio {ratio:.2f}" if ratio is not None else ""
        lines.append(f"{f.what:44} {_spread(f.values)} {f.unit}{beside}   aim {f.aim}")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    ordered = sorted(values)
    if len(ordered) == 1:
        return f"{ordered[0]:.1f}"
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return f"{statistics.median(ordered):.1f} ({ordered[0]:.1f}-{p95:.1f})"


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
