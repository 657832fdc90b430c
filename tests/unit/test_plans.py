"""Plans of a fit: which events a tower may not learn, so that the scores that ranking learns from are honest."""

from __future__ import annotations

import numpy as np
from training_world import DAY_US, START_US, columns, item_table

from services.domain import SECOND_US
from services.training.examples import corpus_of
from services.training.plans import last_of_each, places_of


def test_the_last_thing_of_each_user_is_held_out_that_is_new_to_them() -> None:
    # ann takes a, b, then a again: b is the last thing new to her. bob took one thing only. cem ends with a hide.
    at = [0, DAY_US, 2 * DAY_US, 0, 0, DAY_US, 2 * DAY_US]
    rows = [("ann", "a"), ("ann", "b"), ("ann", "a"), ("bob", "a"), ("cem", "b"), ("cem", "c"), ("cem", "d")]
    kinds = ["click"] * 6 + ["hide"]
    events = columns([(user, item, kind, t) for (user, item), kind, t in zip(rows, kinds, at, strict=True)])
    corpus = corpus_of(events, item_table(events))
    requests = last_of_each(corpus)
    users = [events.user_ids[code] for code in requests.user_codes]
    assert users == ["ann", "cem"]
    wanted = corpus.vocabulary.ids(requests.target_rows)
    assert list(wanted) == ["b", "c"]
    assert requests.asked_us.tolist() == [START_US + DAY_US - 1] * 2
    places = places_of(corpus, requests)
    assert corpus.sequences.rows[places].tolist() == requests.target_rows.tolist()
    assert corpus.sequences.times_s[places].tolist() == [(START_US + DAY_US) // SECOND_US] * 2
    assert np.all(corpus.sequences.positive[places])
