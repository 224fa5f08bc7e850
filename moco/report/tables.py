"""A table of accuracies for the terminal, with the published figures beside them."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from moco.runs.published import Published


def accuracy_table(title: str, rows: Sequence[tuple[str, float, Published | None]]) -> Table:
    """A row each: what, its top-1 accuracy in 0..1, and the published figure where there is one."""
    table = Table(title=Text(title), title_justify="left", min_width=len(title))
    table.add_column("")
    table.add_column("accuracy", justify="right")
    with_published = any(published for *_, published in rows)
    if with_published:
        table.add_column("published", justify="right")
        table.add_column("source")
    for name, accuracy, published in rows:
        cells = [name, f"{100 * accuracy:.1f} %"]
        if with_published:
            cells += [f"{published.value:.1f} %", published.source] if published else ["", ""]
        table.add_row(*cells)
    return table
