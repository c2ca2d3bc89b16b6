"""The one style of all drawings: cards of the same width with a title, for light and dark pages.

A card has its own background, since GitHub and PyPI show the same file on white and on black: ink
that both could take would have too little contrast on either. Colours are those of Okabe and Ito,
for colour-blind readers, and lines differ by their markers, too. Texts stay texts, so that they can
be searched and read aloud.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outrider.errors import ConfigurationError, install_hint
from outrider.protocol.stages import Track

BLUE, ORANGE, VERMILION = "#0072b2", "#e69f00", "#d55e00"
SKY, PURPLE, DARK = "#56b4e9", "#cc79a7", "#444444"

INK, MUTED = "#1f2328", "#59636e"

TRACKS = {
    Track.TARGET: BLUE,
    Track.DRAFT: ORANGE,
    Track.NETWORK: SKY,
    Track.ORCHESTRATOR: DARK,
}

_GRID, _BORDER = "#d8dee4", "#d0d7de"
_WIDTH, _MARGIN, _HEAD = 8.0, 0.16, 0.66  # inches

_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "outrider",  # the same figures give the same file
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": _BORDER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.markersize": 6,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.handlelength": 1.6,
}


@contextmanager
def card(
    path: Path, title: str, subtitle: str, height: float, **panels: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, to draw in; written to `path` at the end.

    Args:
        title: the question that the drawing answers.
        subtitle: what is seen, and of what.
        height: in inches; the width is that of all cards.
        panels: how many axes, and what they share, as of matplotlib's `subplots`.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure((_WIDTH, height), facecolor="none")
        left, bottom = _MARGIN / _WIDTH, _MARGIN / height
        inner = (left, bottom, 1 - 2 * left, 1 - bottom - _HEAD / height)
        figure.set_layout_engine("constrained", rect=inner)
        edge = 0.01
        background = FancyBboxPatch(
            (edge, edge),
            _WIDTH - 2 * edge,
            height - 2 * edge,
            boxstyle="round,pad=0,rounding_size=0.1",
            transform=figure.dpi_scale_trans,
            facecolor="white",
            edgecolor=_BORDER,
            linewidth=0.8,
            zorder=-1,
        )
        figure.add_artist(background)
        figure.text(left, 1 - 0.15 / height, title, va="top", weight="bold", size=13)
        figure.text(left, 1 - 0.42 / height, subtitle, va="top", size=9.5, color=MUTED)
        yield figure, figure.subplots(squeeze=False, **panels).flatten()
        figure.savefig(path, metadata={"Date": None, "Title": title})


def legend_below(figure: Any, axes: Any) -> None:
    """One legend, of these axes, below all panels, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    left, bottom, width, height = figure.get_layout_engine().get()["rect"]
    figure.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(left, bottom), ncols=len(labels)
    )
    row = 0.28 / figure.get_figheight()
    figure.get_layout_engine().set(rect=(left, bottom + row, width, height - row))


def check_matplotlib() -> None:
    """Raises ConfigurationError: matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"plots need matplotlib (or --no-plots); {install_hint('bench')}"
        ) from error


def mark_one(axes: Any, *, upright: bool = False) -> None:
    """A line where something is as fast as the target alone."""
    (axes.axvline if upright else axes.axhline)(1.0, color=MUTED, linewidth=1.2, zorder=1)


def label_bars(axes: Any, bars: Any, texts: Sequence[str], **look: Any) -> None:
    """Writes behind each bar, over lines that pass there."""
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.bar_label(bars, texts, padding=4, bbox=behind, **look)


def bars_only(axes: Any) -> None:
    """Horizontal bars with their values: neither lines across, nor an axis beside the names."""
    axes.grid(visible=False, axis="y")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.invert_yaxis()


def steps_of_two(axes: Any, points: list[int]) -> None:
    """A logarithmic axis that says what was measured: 1, 2, 4, ... rather than powers."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(points, [str(point) for point in points])
    axes.minorticks_off()
