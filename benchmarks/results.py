"""Figures, whether they meet their targets, and the table that shows them."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.machine import Machine

BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"


class ReadmeError(Exception):
    """The README has no place for the table."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be: a value in its own unit, or with `of_floor` a part of the floor."""

    value: float
    kind: Literal["at least", "at most"] = "at least"
    of_floor: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity: a value for each run, and the floor that was measured between them."""

    benchmark: str
    what: str
    unit: str
    values: tuple[float, ...]
    target: Target | None = None
    floor: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def median(self) -> float:
        """The figure in one number."""
        return statistics.median(self.values)

    @property
    def ratio(self) -> float | None:
        """The medians' ratio, None where there is no floor."""
        return self.median / statistics.median(self.floor) if self.floor else None

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        reached = self.median
        if self.target.of_floor:
            if self.ratio is None:
                raise ValueError(f"'{self.what}' has a target against a floor that was not measured")
            reached = self.ratio
        return reached >= self.target.value if self.target.kind == "at least" else reached < self.target.value


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _spread(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{_number(values[0])} {unit}"
    return f"{_number(statistics.median(values))} ({_number(min(values))}..{_number(max(values))}) {unit}"


def _floor(figure: Figure) -> str:
    if figure.ratio is None:
        return ""
    return f"{_spread(figure.floor, figure.unit)}; ratio {figure.ratio:.2f}"


def _target(figure: Figure) -> str:
    target = figure.target
    if target is None:
        return ""
    wanted = f"{target.value:g} of the floor" if target.of_floor else f"{target.value:g} {figure.unit}"
    return f"at least {wanted}" if target.kind == "at least" else f"under {wanted}"


def table(figures: Sequence[Figure], machine: Machine, *, runs: int, quick: bool) -> str:
    """The figures in Markdown, and below them what they were measured on."""
    met = {True: "yes", False: "**no**", None: ""}
    lines = ["| Benchmark | Measured | Floor | Target | Met |", "|---|---|---|---|---|"]
    for figure in figures:
        what = f"`{figure.benchmark}`: {figure.what}"
        cells = (what, _spread(figure.values, figure.unit), _floor(figure), _target(figure), met[figure.is_met])
        lines.append(f"| {' | '.join(cells)} |")
    scale = "**Quick run, smaller inputs: no figures to quote.** " if quick else ""
    how = f"Median (min..max) of {runs} runs (`memory`: one; `idle-pass`: every call)"
    lines += ["", f"{scale}{how}, floor and program in turn, warm sources. {machine}."]
    return "\n".join(lines) + "\n"


def as_json(figures: Sequence[Figure], machine: Machine, *, runs: int) -> str:
    """The same for programs, with the value of every run."""
    document = {
        "machine": dataclasses.asdict(machine),
        "runs": runs,
        "figures": [
            {**dataclasses.asdict(figure), "median": figure.median, "ratio": figure.ratio, "met": figure.is_met}
            for figure in figures
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def write_readme(readme: Path, text: str) -> None:
    """Put the table between its two marks; raises `ReadmeError` unless there is one such place."""
    content = readme.read_text(encoding="utf-8")
    before, begin, rest = content.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in after or END in before:
        raise ReadmeError(f"'{readme}' needs one '{BEGIN}' with one '{END}' below it")
    readme.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")
