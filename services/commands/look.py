"""recommend, user, settings: what the instance knows and how it is set."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from services.commands.edge import Fields, Json, age, answer, checked_user, existing, moment, now, settings_of, table

if TYPE_CHECKING:
    from services.domain import Pick, Slate, UserState
    from services.ports import Catalogue, LogView
    from services.settings import Settings

LIMIT_MAX = 500


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: freshrank recommend user-7 --limit 5")(recommend)
    app.command(epilog="Example: freshrank user user-7")(user)
    app.command(epilog="Example: freshrank settings --markdown")(settings)


def recommend(
    context: typer.Context,
    user_id: Annotated[str, typer.Argument(help="Whose list.", metavar="USER")],
    limit: Annotated[int, typer.Option(min=1, max=LIMIT_MAX, help="Length of the list.")] = 10,
    explain: Annotated[bool, typer.Option("--explain", help="Reasons by erasure, and what was looked at.")] = False,
    as_json: Json = False,
) -> None:
    """The list of one user.

    As the API would answer now; nothing is recorded. With --explain an item of the history is named as a reason only if
    the score falls when the user never touched it; what the model looked at is shown beside it, and is no reason.
    """
    from services import processes, wiring
    from services.domain import Query

    reasons: Literal["source", "erasure"] = "erasure" if explain else "source"
    query = Query("command-line", checked_user(user_id), limit, now(), record=False, reasons=reasons)
    given = existing(settings_of(context))
    slate = processes.recommend_once(given, query)
    with wiring.open_home(given) as home:
        titles = titles_of(home.catalogue, tuple(pick.item_id for pick in slate.items))
        why = "" if slate.items else why_empty(home.view)
        live = None if slate.release_id else home.registry.live()
    refused = live.release_id if live else None
    answer(as_json, slate_fields(slate, titles), lambda: print_slate(slate, titles, why, refused))


def user(
    context: typer.Context,
    user_id: Annotated[str, typer.Argument(help="Whose row.", metavar="USER")],
    limit: Annotated[int, typer.Option(min=1, max=64, help="Newest events shown.")] = 20,
    as_json: Json = False,
) -> None:
    """What is known of a user.

    History, features and freshness, as the feature store has them.
    """
    from services import wiring

    user_id = checked_user(user_id)
    with wiring.open_home(existing(settings_of(context))) as home:
        state = home.features.read(user_id)
        titles = titles_of(home.catalogue, tuple(each.item_id for each in state.events[:limit]))
    fields = user_fields(state, titles, limit)
    answer(as_json, fields, lambda: _print_user(state, titles, fields, limit))


def settings(
    context: typer.Context,
    markdown: Annotated[bool, typer.Option("--markdown", help="As the page docs/settings.md.")] = False,
    as_json: Json = False,
) -> None:
    """Every setting and its source."""
    from services.settings import Settings, setting_sources, without_secrets

    given = settings_of(context)
    if markdown:
        sys.stdout.write(markdown_page(Settings))
        return
    sources = setting_sources(given)
    rows = [
        (name, _shown(without_secrets(getattr(given, name))), sources[name], each.description or "")
        for name, each in Settings.model_fields.items()
    ]
    names = ("setting", "value", "from", "meaning")
    answer(
        as_json,
        {row[0]: {"value": row[1], "from": row[2], "meaning": row[3]} for row in rows},
        lambda: table("", names, rows),
    )


def markdown_page(model: type[Settings]) -> str:
    """docs/settings.md: a line per setting with its default, as it does not depend on this machine."""
    lines = [
        "# Settings",
        "",
        "Written by `make docs`. Defaults, then `freshrank.toml` in the working folder (or the file that",
        "`FRESHRANK_CONFIG` names), then the environment: `FRESHRANK_` and the name in capitals, parts of a part after",
        'two underscores (`FRESHRANK_KINDS__FINISH=\'{"sign": "positive", "weight": 2}\'`). Units stand last in names.',
        "`freshrank settings` shows the values in force and where each came from.",
        "",
        "| setting | default | meaning |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {_markdown_default(each.default)} | {each.description} |"
        for name, each in model.model_fields.items()
    ]
    return "\n".join([*lines, "", _kinds_table(model), ""])


def titles_of(catalogue: Catalogue, item_ids: tuple[str, ...]) -> dict[str, str]:
    """The title of each item; its id where it has none."""
    cards = catalogue.cards(item_ids)
    return {
        item_id: (card.title if card and card.title else item_id) for item_id, card in zip(item_ids, cards, strict=True)
    }


def slate_fields(slate: Slate, titles: Mapping[str, str]) -> Fields:
    """A slate in the words of the API."""
    return {
        "request_id": slate.request_id,
        "user_id": slate.user_id,
        "release_id": slate.release_id,
        "degraded": slate.degraded,
        "items": [
            {"item_id": p.item_id, "rank": p.rank, "score": p.score, "source": p.source,
             "title": titles[p.item_id], "reason": p.reason, "propensity": p.propensity,
             **({"explanation": p.explanation} if p.explanation else {})}
            for p in slate.items
        ],
    }  # fmt: skip


def user_fields(state: UserState, titles: Mapping[str, str], limit: int) -> dict[str, object]:
    """A user's row and the features derived from it now."""
    from services.domain import to_us
    from services.items import ItemTable
    from services.signals import USER_FEATURES, user_features

    asked_us = to_us(now())
    features = user_features(ItemTable().history(state), asked_us)
    return {
        "user_id": state.user_id,
        "stranger": state.is_stranger,
        "row_time": moment(state.row_time_us),
        "age_s": round((asked_us - state.row_time_us) / 1e6, 3) if not state.is_stranger else None,
        "first_seen": moment(state.first_seen_us),
        "features": {name: round(float(value), 4) for name, value in zip(USER_FEATURES, features, strict=True)},
        "hidden": [item_id for _, item_id in state.hidden],
        "seen": len(state.seen),
        "history": [
            {"occurred_at": moment(e.occurred_us), "kind": e.kind, "item_id": e.item_id, "title": titles[e.item_id],
             "value": e.value, "weight": e.weight}
            for e in state.events[:limit]
        ],
    }  # fmt: skip


def why_empty(view: LogView) -> str:
    """Why a list has nothing in it, and what to do about it."""
    from services.lag import lags_of

    if not any(sum(view.ends(topic).values()) for topic in ("freshrank.events", "freshrank.items")):
        return "Nothing has come in yet; `freshrank import FILE` brings events and items."
    lags = lags_of(view)
    behind = [name for name in ("features", "trends", "catalogue") if lags[name]]
    if behind:
        names = " ".join(behind)
        return f"Not all is taken in yet; `freshrank run` does that, or `freshrank consume {names} --until-caught-up`."
    return (
        "Every item known was taken, is hidden or cannot be had; new items (`freshrank import --items`) fill it again."
    )


def print_slate(slate: Slate, titles: Mapping[str, str], why: str, refused: str | None = None) -> None:
    """A list as a table; one that is empty as the sentence `why`. `refused`: the live release, where it could not be
    used."""
    if why:
        sys.stdout.write(f"There is nothing to show to {slate.user_id}. {why}\n")
        return
    rows = [
        (p.rank + 1, titles[p.item_id], p.source, p.reason.text, f"{p.score:.4f}", *_explained(p)) for p in slate.items
    ]
    names: tuple[str, ...] = ("", "title", "source", "reason", "score")
    if any(p.explanation for p in slate.items):
        names = (*names, "drop without it", "looked at (no reason)")
    without = f"release {refused} was refused (why stands on stderr)" if refused else "no release yet"
    by = f" by release {slate.release_id}" if slate.release_id else f": {without}: trending and new items"
    table(f"For {slate.user_id}{by}", names, rows)
    if slate.degraded:
        sys.stdout.write(f"Answered without: {', '.join(slate.degraded)}.\n")


def _explained(pick: Pick) -> tuple[str, ...]:
    """The drop behind the reason, and the shares of attention; nothing where nobody asked."""
    if pick.explanation is None:
        return ()
    drop, looked_at = pick.explanation.drop, pick.explanation.looked_at[:2]
    shares = [f"{each.title} {each.share:.0%}" for each in looked_at]
    nothing = [f"nothing {pick.explanation.at_nothing:.0%}"] if looked_at else []
    return "" if drop is None else f"{drop:.4f}", ", ".join([*shares, *nothing])


def _print_user(state: UserState, titles: Mapping[str, str], fields: Mapping[str, object], limit: int) -> None:
    if state.is_stranger:
        sys.stdout.write(f"Nothing is known of {state.user_id}.\n")
        return
    rows = [
        (moment(e.occurred_us), e.kind, titles[e.item_id], "" if e.value is None else e.value)
        for e in state.events[:limit]
    ]
    table(
        f"{state.user_id}: row of {fields['row_time']}, {age(float(str(fields['age_s'])))} old",
        ("when", "kind", "item", "value"),
        rows,
    )
    features = fields["features"]
    assert isinstance(features, dict)
    table("", ("feature", "value"), list(features.items()))


def _shown(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return ", ".join(f"{key}={each}" if isinstance(each, str) else key for key, each in value.items())


def _markdown_default(value: object) -> str:
    return "the kinds below" if value and isinstance(value, dict) else f"`{value}`"


def _kinds_table(model: type[Settings]) -> str:
    rules = model.model_fields["kinds"].default
    lines = [
        f"| `{kind}` | {rule.sign} | {rule.weight:g} | {'' if rule.threshold is None else f'{rule.threshold:g}'} |"
        for kind, rule in rules.items()
    ]
    return "\n".join(["## Kinds of events", "", "| kind | sign | weight | threshold |", "|---|---|---|---|", *lines])
