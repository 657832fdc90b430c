"""The pipeline with something about its lists changed: more diversity, a cap, a source taken away. Nothing is trained
for it: each is asked of the same release as the pipeline, so their differences are those of the lists alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.domain import BadRequest, Query
from services.recommend import Stages

SOURCES = ("faiss", "covisits", "trending", "new")


@dataclass(frozen=True, slots=True)
class Variant:
    """One pipeline, by the name that its lines have."""

    name: str
    diversity: float | None = None
    category_cap: int | None = None
    without: str | None = None

    def query(self, query: Query) -> Query:
        """The question as this pipeline is asked it."""
        return replace(query, diversity=self.diversity, category_cap=self.category_cap)

    def stages(self, stages: Stages) -> Stages:
        """The stages without the source that is taken away."""
        return replace(stages, sources=tuple(each for each in stages.sources if each.name != self.without))


PIPELINE = Variant("pipeline")
"""As it serves."""


def variants_of(
    diversities: Sequence[float] = (), category_caps: Sequence[int] = (), without: Sequence[str] = ()
) -> tuple[Variant, ...]:
    """One variant for each of them. Raises BadRequest where there is no such source or diversity."""
    for source in without:
        if source not in SOURCES:
            raise BadRequest(f"there is no source {source!r} to take away; there are {', '.join(SOURCES)}")
    for diversity in diversities:
        if not 0.0 <= diversity <= 1.0:
            raise BadRequest(f"a diversity is 0 to 1, not {diversity:g}")
    for cap in category_caps:
        if cap < 1:
            raise BadRequest(f"a cap is at least 1 item of a category, not {cap}")
    return (
        *(Variant(f"pipeline diversity {each:g}", diversity=each) for each in diversities),
        *(Variant(f"pipeline cap {each}", category_cap=each) for each in category_caps),
        *(Variant(f"pipeline without {each}", without=each) for each in without),
    )
