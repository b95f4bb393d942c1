"""What every measurement needs: samples by name and variant, and the table of their medians."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from attrs import define, field


@define(eq=False)
class Samples:
    """``variants``: what is compared; ratios are to the first one. Values are in the unit that the name ends with."""

    variants: Sequence[str]
    _values: dict[str, dict[str, list[float]]] = field(factory=dict, init=False)

    def add(self, name: str, variant: str, value: float) -> None:
        self._values.setdefault(name, {v: [] for v in self.variants})[variant].append(value)

    def to_document(self) -> dict[str, Any]:
        """Name -> variant -> median, least, most, count; and the ratio of its median to the first variant's."""
        document: dict[str, Any] = {}
        for name, values in self._values.items():
            first = statistics.median(values[self.variants[0]])
            document[name] = {
                variant: {
                    "median": statistics.median(found),
                    "min": min(found),
                    "max": max(found),
                    "count": len(found),
                    "ratio": statistics.median(found) / first if first else None,
                }
                for variant, found in values.items()
            }
        return document

    def to_table(self) -> str:
        """A line a name: of each variant the median and the range, then the ratios."""
        header = ["", *(f"{v} (min .. max)" for v in self.variants), "ratio"]
        rows = [header]
        for name, found in self.to_document().items():
            cells = [
                f"{d['median']:.4g} ({d['min']:.4g} .. {d['max']:.4g})"
                for d in (found[v] for v in self.variants)
            ]
            ratios = [found[v]["ratio"] for v in self.variants[1:]]
            rows.append([name, *cells, " ".join("-" if r is None else f"{r:.2f}" for r in ratios)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )
