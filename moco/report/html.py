"""HTML whose text is escaped wherever it comes from."""

from html import escape
from typing import Any


class Html(str):
    """Text that is HTML already."""


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """An element. Children that are no Html are text; False or None as an attribute leaves it out, True is its name.

    `class_` is class, `aria_label` is aria-label.
    """
    spelled = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in ("img", "input"):
        return Html(f"<{name}{spelled}>")
    return Html(f"<{name}{spelled}>{joined(*children)}</{name}>")


def joined(*children: Any) -> Html:
    return Html("".join(child if isinstance(child, Html) else escape(str(child)) for child in children))


def table(head: list[str], rows: list[list[Any]], caption: str = "", numbers: bool = False) -> Html:
    """A table in a box of its own, which scrolls where the page is narrow; the first cell of a row names it.

    `numbers` sets the other columns to the right.
    """
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    made = tag(
        "table",
        tag("caption", caption) if caption else Html(),
        tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head))),
        tag("tbody", *body),
        class_="numbers" if numbers else None,
    )
    return tag("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption or head[0])
