"""What is learned from what: plans by which a tower is fitted and ranking examples are made.

`newest_rounds`, for a log that goes on:

Time, oldest first:   [ tower ............ | ranking requests ..... | judged slice ]
                                         newest                    cut

The tower is fitted on what lies before `newest`. Then it goes through the newest events in a few rounds: it
scores the requests of a round before it learns from them, so its scores are as honest and as fresh there as they will
be in serving; the reranker learns from all rounds. What lies after the cut is seen by neither.

`last_events`, for cases that lie all over the time of the log (leave-one-out): nothing is old or new, and each user's
last event is kept from the tower, which stops by some of them; the reranker learns from all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from models.batches import HeldOut, RankingExamples
from models.config import Effort, ModelConfig
from models.fit import FittedTower, continue_tower, fit_tower
from services.domain import SECOND_US, BadRequest
from services.training.examples import Corpus, Requests, held_out_after, joined_examples, requests_between
from services.training.served import Learned, nothing_served

if TYPE_CHECKING:
    from services.training.parts import Examples, ReleaseParts

REQUESTS_MAX: dict[Effort, int] = {"demo": 20_000, "normal": 40_000, "full": 100_000}
NEWEST_SHARE = 0.2
ROUNDS = 3
LAST_EPOCHS = 2


@dataclass(frozen=True, slots=True)
class Planned:
    """What a plan has made: ranking examples with the scores of `scoring`, a tower that had not learned their targets,
    the tower that is published, and how many examples came from where."""

    ranking: RankingExamples
    scoring: FittedTower
    tower: FittedTower
    learned: Learned


class Plan(Protocol):
    """What is learned from what, so that the scores that ranking learns from are as honest as they will be."""

    def __call__(self, parts: ReleaseParts, examples: Examples, config: ModelConfig) -> Planned:
        """Fit the tower and make the ranking examples."""


def newest_rounds(parts: ReleaseParts, examples: Examples, config: ModelConfig) -> Planned:
    """The plan of a log that goes on: the tower learns what lies before the newest events, then these in rounds."""
    corpus, choices = examples.corpus, parts.choices
    newest_us = newest_from(corpus, REQUESTS_MAX[choices.effort])
    held_out = held_out_after(corpus, newest_us, config.history, config.held_out_max, choices.seed)
    older = corpus.sequences.before(newest_us // SECOND_US)
    first = fit_tower(
        older, corpus.vocabulary, corpus.text_vectors, config, parts.progress, held_out, choices.device,
        choices.checkpoints,
    )  # fmt: skip
    ranking, tower, learned = _rounds(parts, examples, first, newest_us)
    return Planned(ranking, first, tower, learned)


def last_events(parts: ReleaseParts, examples: Examples, config: ModelConfig) -> Planned:
    """The plan of cases all over the time of the log: each user's last event on an item new to them is held out."""
    corpus, choices = examples.corpus, parts.choices
    requests = last_of_each(corpus)
    if len(requests) < ROUNDS:
        raise BadRequest("hardly anybody took two things: there is nothing to learn ranking from")
    rng = np.random.default_rng(choices.seed)
    places = places_of(corpus, requests)
    stop_by = np.sort(rng.permutation(len(places))[: config.held_out_max])
    sequences = corpus.sequences
    held_out = HeldOut(sequences.prefixes_of(places[stop_by], config.history), sequences.rows[places[stop_by]])
    kept = np.ones(len(sequences.rows), dtype=np.bool_)
    kept[places] = False
    tower = fit_tower(
        sequences.keep(kept), corpus.vocabulary, corpus.text_vectors, config, parts.progress, held_out, choices.device,
        choices.checkpoints,
    )  # fmt: skip
    asked = np.sort(rng.permutation(len(requests))[: REQUESTS_MAX[choices.effort]])
    learned = Learned(nothing_served(0, 0, choices.served), choices.served.lists_min)
    ranking = parts.ranking_examples(examples, tower, requests.take(asked))
    learned.sampled = len(ranking)
    return Planned(ranking, tower, tower, learned)


def _rounds(
    parts: ReleaseParts, examples: Examples, tower: FittedTower, newest_us: int
) -> tuple[RankingExamples, FittedTower, Learned]:
    """Ranking examples from `newest_us` to the cut, the tower after it has learned from all of it, and how many
    examples came from where."""
    corpus, choices = examples.corpus, parts.choices
    requests = requests_between(corpus, newest_us, examples.judged.cut_us, REQUESTS_MAX[choices.effort], choices.seed)
    if len(requests) < ROUNDS:
        raise BadRequest("hardly anybody took anything new lately: there is nothing to learn ranking from")
    lists = parts.lists_since(newest_us, examples)
    learned = Learned(lists, choices.served.lists_min)
    made = []
    asked_before_us = newest_us
    for number, places in enumerate(np.array_split(np.arange(len(requests)), ROUNDS)):
        sampled = parts.ranking_examples(examples, tower, requests.take(places))
        made.append(sampled)
        learned.sampled += len(sampled)
        until_us = max(int(requests.asked_us[places[-1]]), newest_us)
        last = number == ROUNDS - 1
        if learned.enough:
            asked = (lists.asked_us >= asked_before_us) & (last | (lists.asked_us < until_us))
            made += parts.list_examples(examples, tower, lists.take(np.flatnonzero(asked)), learned)
        asked_before_us = until_us
        newer = corpus.sequences if last else corpus.sequences.before(until_us // SECOND_US)
        tower = continue_tower(tower, newer, LAST_EPOCHS if last else 1, parts.progress)
    return joined_examples(made), tower, learned


def last_of_each(corpus: Corpus) -> Requests:
    """Each user's last first positive event on an item, asked just before it, where another event precedes it; in time
    order."""
    every = requests_between(corpus, 0, int(corpus.events.occurred_us[-1]) + 1, len(corpus.events), 0, ahead_share=0.0)
    order = np.lexsort((every.asked_us, every.user_codes))
    users = every.user_codes[order]
    last = order[np.flatnonzero(np.append(users[1:] != users[:-1], True) & np.append(False, users[1:] == users[:-1]))]
    return every.take(np.sort(last))


def places_of(corpus: Corpus, requests: Requests) -> NDArray[np.int64]:
    """Where the event of each request stands in the sequences. A request is a user's first positive event on a row."""
    sequences = corpus.sequences
    width = len(corpus.vocabulary)
    keys = sequences.owners() * width + sequences.rows
    positive = np.flatnonzero(sequences.positive)
    found, first = np.unique(keys[positive], return_index=True)
    wanted = requests.user_codes * width + requests.target_rows
    places: NDArray[np.int64] = positive[first[np.searchsorted(found, wanted)]]
    return places


def newest_from(corpus: Corpus, requests_max: int) -> int:
    """Where the ranking requests begin: the newest fifth of the events that are taught (a machine's flood is not), or
    less when that is more than enough."""
    times = corpus.events.occurred_us[corpus.taught] if corpus.taught.any() else corpus.events.occurred_us
    wanted = min(int(len(times) * NEWEST_SHARE), 3 * requests_max)
    return int(times[max(0, len(times) - 1 - wanted)])
