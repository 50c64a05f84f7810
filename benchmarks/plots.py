"""Plots in one style."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#3a76af", "#d1605e", "#6a9f58", "#e7a13c", "#85609e", "#8c8c8c")


def axes(title: str, x: str, y: str, size: tuple[float, float] = (7.0, 4.2)) -> tuple[Figure, Axes]:
    """An empty plot in the common style."""
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    ax.set_title(title, loc="left", fontsize=11)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", linewidth=0.8)
    ax.set_axisbelow(True)
    return figure, ax


def bars(ax: Axes, groups: Sequence[str], series: Mapping[str, Sequence[float]], form: str = "{:.2f}") -> None:
    """Grouped bars with their values on top: a bar of every series in each group.

    Args:
        ax: Where.
        groups: Labels along the x axis.
        series: Heights by name, one for each group.
        form: How a value is written.
    """
    width = 0.8 / len(series)
    for number, (name, heights) in enumerate(series.items()):
        places = [place + (number - (len(series) - 1) / 2) * width for place in range(len(groups))]
        drawn = ax.bar(places, heights, width * 0.92, label=name, color=COLORS[number % len(COLORS)])
        ax.bar_label(drawn, [form.format(height) for height in heights], fontsize=8, padding=2)
    ax.set_xticks(range(len(groups)), groups)
    ax.margins(y=0.12)
    if len(series) > 1:
        ax.legend(frameon=False, fontsize=9)
