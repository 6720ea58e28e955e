"""Ratings of two answers to the same messages, kept in the metadata of the stored chat completions."""

from enum import StrEnum

from sqlmodel import Session

from app.completions.service import StoredCompletionNotFound, get_completion, update_completion
from app.http.auth import Caller


class Rating(StrEnum):
    """Which of two answers is better."""

    first = "first"
    second = "second"
    equal = "equal"


RESULTS = {
    Rating.first: ("better", "worse"),
    Rating.second: ("worse", "better"),
    Rating.equal: ("equal",) * 2,
}


def rate_pair(session: Session, caller: Caller, first: str, second: str, rating: Rating) -> int:
    """Keep a rating in the metadata of those of both answers that are stored, and return how many these are.

    Each gets `rating`, and `compared_with`, the id of the other one. A later rating replaces it.
    """
    count = 0
    for own, other, result in zip((first, second), (second, first), RESULTS[rating], strict=True):
        try:
            completion = get_completion(session, caller, own)
        except StoredCompletionNotFound:
            continue
        known = completion.client_metadata or {}
        update_completion(session, caller, own, {**known, "rating": result, "compared_with": other})
        count += 1
    return count
