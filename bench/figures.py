"""A measured figure, its floor, and how they are printed; a plot's data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
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
    tail: bool = False
    """Of single requests or jobs: p50, p95 and p99 are told, and not the range of runs."""
    note: str = ""

    def plain(self) -> dict[str, object]:
        return asdict(self) | {"median": statistics.median(self.values), "ratio": self.ratio()}

    def ratio(self) -> float | None:
        return statistics.median(self.values) / statistics.median(self.floor) if self.floor else None

    def cells(self) -> list[str]:
        """what, value, floor, ratio, aim"""
        ratio = self.ratio()
        beside = f"{self._spread(self.floor)} ({self.floor_is})" if self.floor else ""
        value = f"{self._spread(self.values)} {self.unit}"
        return [self.what, value, beside, "" if ratio is None else f"{ratio:.2f}", self.aim]

    def _spread(self, values: list[float]) -> str:
        if self.tail:
            return " / ".join(_short(percentile(values, share)) for share in (0.5, 0.95, 0.99))
        median = _short(statistics.median(values))
        return median if len(values) == 1 else f"{median} ({_short(min(values))}–{_short(max(values))})"


@dataclass
class Line:
    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass
class Plot:
    """Drawn by plots.py. Without `log`, a line is drawn as bars if its x are names."""

    name: str
    title: str
    x: str
    y: str
    lines: list[Line]
    log: bool = False
    names: list[str] = field(default_factory=list)
    """Of the places on the x axis, for bars: each line's y has one for each."""


@dataclass
class Report:
    """What a part has found."""

    figures: list[Figure]
    plots: list[Plot] = field(default_factory=list)
    skipped: str = ""
    """Why nothing, or not all, could be measured."""


HEAD = ["", "median (range), or p50 / p95 / p99", "floor", "ratio", "aim"]


def table(figures: list[Figure]) -> str:
    return "\n".join(_line(f) for f in figures)


def _line(f: Figure) -> str:
    what, value, floor, ratio, aim = f.cells()
    beside = f"   floor {floor}, ratio {ratio}" if floor else ""
    return f"{what:52} {value}{beside}" + (f"   aim {aim}" if aim else "") + (f"   [{f.note}]" if f.note else "")


def markdown(figures: list[Figure]) -> str:
    rows = [HEAD, ["---"] * len(HEAD), *(f.cells() for f in figures)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows) + "\n"


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Of ln y over ln x, and its standard error: 0 is constant, 1 is linear."""
    across, up = [math.log(v) for v in x], [math.log(v) for v in y]
    fit = statistics.linear_regression(across, up)
    left = [b - fit.intercept - fit.slope * a for a, b in zip(across, up, strict=True)]
    spread = sum((a - statistics.fmean(across)) ** 2 for a in across)
    return fit.slope, math.sqrt(sum(r * r for r in left) / max(1, len(left) - 2) / spread)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
