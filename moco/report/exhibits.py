"""The parts of the page that are pictures."""

from collections.abc import Callable

from moco.report.gallery import Gallery, Pair, Picture, Query
from moco.report.html import Html, joined, tag

_MAP = (
    "Training images, each beside those whose features are like its own; far distances and the axes mean nothing. "
    "Point at one to see it and its nearest; choose a class to set it off."
)
_NEIGHBOURS = "The nearest image first; below each, the cosine of its features with the query's."
_EXTREMES = "Views least alike show what the encoder is not invariant to; images most alike may be doubles."
_VIEWS = "Two random views of an image are a query and its positive key; below, the cosine of their features now."


def images(names: list[str], galleries: list[Gallery | str]) -> list[tuple[str, str, Html]]:
    """The sections that show images, run by run; a run without says why."""
    missing = [
        tag(
            "p",
            tag("strong", name),
            f": no pictures: {gallery}. If the images lie elsewhere now, moco report --data tells where.",
            class_="note",
        )
        for name, gallery in zip(names, galleries, strict=True)
        if isinstance(gallery, str)
    ]
    seen = [(i, names[i], gallery) for i, gallery in enumerate(galleries) if isinstance(gallery, Gallery)]
    makers: list[tuple[str, str, str, Callable[[int, Gallery], Html]]] = [
        ("map", "Map of the features", _MAP, lambda i, _: tag("div", id=f"map-{i}", class_="map")),
        ("neighbours", "Nearest neighbours", _NEIGHBOURS, lambda _, gallery: _neighbours(gallery)),
        ("pairs", "Most and least similar pairs", _EXTREMES, lambda _, gallery: _extremes(gallery)),
        ("views", "Pairs of views, as the encoder saw them", _VIEWS, lambda _, gallery: _views(gallery)),
    ]
    sections = []
    for key, title, about, make in makers:
        shown = [tag("div", _heading(names, name), make(i, gallery)) for i, name, gallery in seen]
        several = "several" if len(shown) > 1 else None
        sections.append((key, title, joined(tag("p", about), tag("div", *shown, class_=several))))
    return ([("pictures", "Pictures", joined(*missing))] if missing else []) + (sections if seen else [])


def _heading(names: list[str], name: str) -> Html:
    return tag("h3", name) if len(names) > 1 else Html()


def _image(picture: Picture, what: str) -> Html:
    return tag(
        "img", src=picture.uri, alt=f"{what}: {picture.name}" if picture.name else what, title=picture.name or None
    )


def _pair(pair: Pair, what: str) -> Html:
    name = pair.first.name if pair.first.name == pair.second.name else f"{pair.first.name} / {pair.second.name}"
    pictures = tag("div", _image(pair.first, what), _image(pair.second, what), class_="pair")
    return tag("figure", pictures, tag("figcaption", name, tag("span", f"{pair.cosine:.2f}", class_="cosine")))


def _views(gallery: Gallery) -> Html:
    return tag("div", *(_pair(pair, "view") for pair in gallery.views), class_="gallery pairs")


def _extremes(gallery: Gallery) -> Html:
    parts: list[Html] = []
    for title, pairs in gallery.extremes.items():
        parts += [tag("h4", title), tag("div", *(_pair(pair, "image") for pair in pairs), class_="gallery pairs")]
    return joined(*parts)


def _neighbours(gallery: Gallery) -> Html:
    labelled = any(query.picture.label is not None for query in gallery.queries)
    marked = " One of another class is marked ≠ and has a dashed frame." if labelled else ""
    return joined(tag("p", gallery.asked + marked), tag("div", *map(_query, gallery.queries), class_="gallery queries"))


def _query(query: Query) -> Html:
    asked = tag("figure", _image(query.picture, "query"), tag("figcaption", query.picture.name), class_="query")
    found = []
    for picture, cosine in query.neighbours:
        other = picture.label is not None and query.picture.label is not None and picture.label != query.picture.label
        name = f"≠ {picture.name}" if other else picture.name
        caption = tag("figcaption", name if other else "", tag("span", f"{cosine:.2f}", class_="cosine"))
        found.append(tag("figure", _image(picture, "neighbour"), caption, class_="other" if other else None))
    return tag("div", asked, *found, class_="row")
