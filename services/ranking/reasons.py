"""Why an item is shown, said only as far as it is known: the source, and the item that the source started from."""

from __future__ import annotations

from collections.abc import Callable

from services.domain import Candidate, Query, Reason


def reason_for(query: Query, candidate: Candidate, title: Callable[[str], str]) -> Reason:
    """The reason of one pick. Attention weights are never sold as one, so a model's pick is just `for_you`."""
    start = candidate.started_from
    if candidate.source == "covisits" and start is not None:
        return Reason("because_you_clicked", (start,), f"Because you picked {title(start)}")
    if candidate.source == "related" and start is not None:
        return Reason("similar_to", (start,), f"Similar to {title(start)}")
    within = f" in {', '.join(sorted(query.categories))}" if query.categories else ""
    if candidate.source == "trending":
        return Reason("trending_in", (), f"Popular now{within}")
    if candidate.source == "new":
        return Reason("new_in", (), f"New{within}")
    return Reason("for_you", (), "Fits what you picked lately" if candidate.source == "faiss" else "Ranked for you")


TO_LEARN = Reason("explored", (), "Shown to find out whether it fits")
"""The reason of a place that explores; nobody claims that its item fits."""
