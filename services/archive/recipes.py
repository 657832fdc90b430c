"""What the columns of a foreign file mean: a mapping given by hand, or a recipe for a known data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from services import wire
from services.archive.reading import DataFile, Fields
from services.domain import BadRequest

Translate = Callable[[Fields], Fields | None]
"""A row of the file as fields of ours; None leaves the row out (it is no event, but no mistake either)."""

ITEM_ALIASES: Mapping[str, tuple[str, ...]] = {
    "item_id": ("itemId", "ItemId", "item", "id"),
    "title": ("name", "Title"),
    "text": ("description", "Comment"),
    "categories": ("genres", "category", "Categories"),
    "attributes": (),
    "available": (),
    "published_at": ("publishedAt", "release_date"),
    "expires_at": ("expiresAt",),
}
_TRUE, _FALSE = ("true", "1", "yes", "t"), ("false", "0", "no", "f")


@dataclass(frozen=True, slots=True)
class ImportSource:
    """A file with what its rows are: events, items, or both."""

    file: DataFile
    event: Translate | None = None
    item: Translate | None = None


def event_source(
    file: DataFile, mapping: Mapping[str, str], constants: Mapping[str, str] | None = None
) -> ImportSource:
    """A file of events. `mapping` is ours -> theirs (`properties.x` too); our names and their aliases go unmapped."""
    return ImportSource(file, event=_translate(mapping, constants or {}, wire.EVENT_ALIASES, "properties"))


def item_source(file: DataFile, mapping: Mapping[str, str], constants: Mapping[str, str] | None = None) -> ImportSource:
    """A file of items. `mapping` is ours -> theirs (`attributes.x` too)."""
    translate = _translate(mapping, constants or {}, ITEM_ALIASES, "attributes")
    return ImportSource(file, item=lambda row: item_fields(translate(row) or {}))


def parse_mapping(given: tuple[str, ...]) -> dict[str, str]:
    """`("user_id=customer", ...)` as a mapping ours -> theirs."""
    mapping: dict[str, str] = {}
    for each in given:
        ours, equals, theirs = each.partition("=")
        if not (ours and equals and theirs):
            raise BadRequest(f"--map {each!r} must look like ours=theirs, for example user_id=customer")
        mapping[ours] = theirs
    return mapping


def item_fields(row: Fields) -> Fields:
    """Texts of a csv as the types of an item: lists split at | or comma, true and false, attributes from JSON."""
    fields = dict(row)
    if isinstance(categories := fields.get("categories"), str):
        fields["categories"] = _list(categories)
    if isinstance(available := fields.get("available"), str) and available.lower() in _TRUE + _FALSE:
        fields["available"] = available.lower() in _TRUE
    if isinstance(attributes := fields.get("attributes"), str):
        fields["attributes"] = _json(attributes)
    return fields


# ---------------------------------------------------------------------------------------------- recipes


def movietweetings(folder: Path) -> tuple[ImportSource, ...]:
    """MovieTweetings: ratings of films, 0 to 10, and the films with genres and year."""
    ratings = DataFile(_one_of(folder, "ratings.dat"), "csv", ("user_id", "item_id", "value", "occurred_at"), "::")
    films = DataFile(_one_of(folder, "movies.dat"), "csv", ("item_id", "title", "categories"), "::")
    return ImportSource(films, item=_film), ImportSource(ratings, event=lambda row: {**row, "kind": "rating"})


def _film(row: Fields) -> Fields:
    title = str(row["title"])
    fields = {"item_id": row["item_id"], "title": title, "categories": _list(str(row["categories"]))}
    year = re.search(r"\((\d{4})\)$", title)
    return {**fields, "published_at": f"{year[1]}-01-01T00:00:00Z"} if year else fields


def online_retail(folder: Path) -> tuple[ImportSource, ...]:
    """Online Retail: lines of invoices as purchases; cancellations, returns and lines without a customer are left
    out. The articles come from the same lines, with their first description."""
    file = DataFile(_one_of(folder, "online-retail.csv"), "csv")
    known: set[str] = set()

    def article(row: Fields) -> Fields | None:
        item_id, title = str(row["StockCode"]), str(row["Description"]).strip()
        if item_id in known or not title or _purchase(row) is None:
            return None
        known.add(item_id)
        return {"item_id": item_id, "title": title}

    return (ImportSource(file, event=_purchase, item=article),)


def _purchase(row: Fields) -> Fields | None:
    customer, quantity = str(row["CustomerID"]), str(row["Quantity"])
    if not customer or quantity.startswith(("-", "0")) or str(row["InvoiceNo"]).startswith("C"):
        return None
    return {
        "user_id": customer.removesuffix(".0"),
        "item_id": row["StockCode"],
        "kind": "purchase",
        "occurred_at": row["InvoiceDate"],
        "value": quantity,
        "session_id": row["InvoiceNo"],
    }


RECIPES: Mapping[str, Callable[[Path], tuple[ImportSource, ...]]] = {
    "movietweetings": movietweetings,
    "online-retail": online_retail,
}


def recipe(name: str, folder: Path) -> tuple[ImportSource, ...]:
    """The sources of a known data set in a folder."""
    if name not in RECIPES:
        raise BadRequest(f"there is no recipe {name!r}; known: {', '.join(sorted(RECIPES))}")
    return RECIPES[name](folder)


# ----------------------------------------------------------------------------------------------- inside


def _translate(
    mapping: Mapping[str, str], constants: Mapping[str, str], known: Mapping[str, tuple[str, ...]], nested: str
) -> Translate:
    for ours in (*mapping, *constants):
        if ours not in known and not ours.startswith(f"{nested}."):
            raise BadRequest(f"{ours!r} is no field of ours; known: {', '.join(known)}, {nested}.NAME")
    ours_of = {alias: ours for ours, aliases in known.items() for alias in (*aliases, ours)}
    taken = {*mapping, *constants}
    mapped = tuple(mapping.items())

    def translate(row: Fields) -> Fields:
        fields: dict[str, object] = {}
        for name, value in row.items():
            ours = ours_of.get(name)
            if ours is not None and ours not in taken and value not in ("", None):
                fields[ours] = value
        fields |= constants
        for ours, theirs in mapped:
            if (value := row.get(theirs)) not in ("", None):
                fields[ours] = value
        return _gathered(fields, nested) if mapped or constants else fields

    return translate


def _gathered(fields: dict[str, object], nested: str) -> dict[str, object]:
    """`properties.x` fields moved into one `properties` mapping."""
    inner = {name: fields.pop(name) for name in [n for n in fields if n.startswith(f"{nested}.")]}
    if inner:
        fields[nested] = {name.removeprefix(f"{nested}."): value for name, value in inner.items()}
    return fields


def _list(text: str) -> tuple[str, ...]:
    if text.startswith("["):
        listed = _json(text)
        return tuple(map(str, listed)) if isinstance(listed, list) else (text,)
    return tuple(part.strip() for part in text.split("|" if "|" in text else ",") if part.strip())


def _json(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return text


def _one_of(folder: Path, name: str) -> Path:
    """The file of that name, plain or compressed."""
    for path in (folder / name, folder / f"{name}.gz", folder / f"{name}.zst"):
        if path.is_file():
            return path
    raise BadRequest(f"{folder} holds no {name} (nor {name}.gz, {name}.zst)")
