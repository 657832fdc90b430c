"""The film data that the demo runs on: MovieTweetings, packed beside this file with its licence and citation.

Cite: Dooms, S., De Pessemier, T., Martens, L. (2013), MovieTweetings: a movie rating dataset collected from Twitter,
CrowdRec at RecSys 2013.
"""

from __future__ import annotations

import gzip
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
LIKED_FROM = 6
HISTORY = (15, 60)
RECENT_S = 45 * 86400
FILMS_OF_A_TASTE_MIN = 6
CLICKS = 3


@dataclass(frozen=True, slots=True)
class Rating:
    """One line of ratings.dat; `at_s` is the time in the data, not the shifted one."""

    user_id: str
    film_id: str
    stars: int
    at_s: int


@dataclass(frozen=True, slots=True)
class Cast:
    """Who the demo asks for, what they like, and the clicks of another taste: `(item_id, title)` each."""

    user_id: str
    taste: str
    other: str
    clicks: tuple[tuple[str, str], ...]


def read_ratings(folder: Path = DATA) -> tuple[Rating, ...]:
    """Every line of ratings.dat.gz, in the order of the file."""
    lines = (line.split("::") for line in _lines(folder / "ratings.dat.gz"))
    return tuple(Rating(user, film, int(stars), int(at_s)) for user, film, stars, at_s in lines)


def read_films(folder: Path = DATA) -> dict[str, tuple[str, frozenset[str]]]:
    """Title and genres by film."""
    lines = (line.split("::") for line in _lines(folder / "movies.dat.gz"))
    return {film: (title, frozenset(genres.split("|")) - {""}) for film, title, genres in lines}


def choose(ratings: Sequence[Rating], films: Mapping[str, tuple[str, frozenset[str]]]) -> Cast:
    """The user with the clearest taste among those with a fair history, and well-known films of a taste they lack."""
    liked: dict[str, set[str]] = defaultdict(set)
    for each in ratings:
        if each.stars >= LIKED_FROM:
            liked[each.user_id].add(each.film_id)
    fair = {user: its for user, its in liked.items() if HISTORY[0] <= len(its) <= HISTORY[1]}
    if not fair:
        raise ValueError(f"no user has {HISTORY[0]} to {HISTORY[1]} liked films")
    shares = {user: _genre_shares(its, films) for user, its in fair.items()}
    user = max(sorted(shares), key=lambda each: max(shares[each].values(), default=0.0))
    taste = max(sorted(shares[user]), key=lambda genre: shares[user][genre])
    known = _well_known(ratings, films, liked[user], taste)
    other = min(sorted(known), key=lambda genre: shares[user].get(genre, 0.0))
    return Cast(user, taste, other, tuple((film, films[film][0]) for film in known[other][:CLICKS]))


def _lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().split("\n")[:-1]


def _genre_shares(films_liked: set[str], films: Mapping[str, tuple[str, frozenset[str]]]) -> dict[str, float]:
    counts = Counter(genre for film in films_liked if film in films for genre in films[film][1])
    return {genre: count / len(films_liked) for genre, count in counts.items()}


def _well_known(
    ratings: Sequence[Rating], films: Mapping[str, tuple[str, frozenset[str]]], known_to_user: set[str], taste: str
) -> dict[str, list[str]]:
    """The films most rated lately, by genre, best known first; only genres with enough of them and not the taste."""
    newest_s = max(each.at_s for each in ratings)
    recent = Counter(each.film_id for each in ratings if each.at_s > newest_s - RECENT_S)
    by_genre: dict[str, list[str]] = defaultdict(list)
    for film, count in sorted(recent.items(), key=lambda pair: (-pair[1], pair[0])):
        genres = films[film][1] if film in films else frozenset()
        if count >= CLICKS and taste not in genres and film not in known_to_user:
            for genre in genres:
                by_genre[genre].append(film)
    enough = {genre: its for genre, its in by_genre.items() if len(its) >= FILMS_OF_A_TASTE_MIN}
    if not enough:
        raise ValueError("no other taste has enough well-known films")
    return enough
