"""Thirty questions for the files that `bench.real` knows, and where a good answer stands.

A place is a platform, or a platform and the slug of a community in it. That a hit stands there says
little about one hit, and something about three hundred.
"""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    words: str
    places: tuple[str, ...]


_COUPLES = ("reddit:relationships", "reddit:relationship-advice")

QUESTIONS = (
    Question("landlord enters my apartment without notice", ("reddit:legaladvice",)),
    Question("neighbour's tree fell on my car", ("reddit:legaladvice",)),
    Question("should I co-sign a loan for a relative", ("reddit:personalfinance",)),
    Question("paying off student debt early", ("reddit:personalfinance",)),
    Question("how much to save for retirement in my twenties", ("reddit:personalfinance",)),
    Question("homemade pizza dough", ("reddit:cooking",)),
    Question("what to do with leftover chicken", ("reddit:cooking",)),
    Question("starting to lift weights as a beginner", ("reddit:fitness",)),
    Question("sore knees after running", ("reddit:fitness",)),
    Question("why does time slow down near a black hole", ("reddit:askscience",)),
    Question("how does the body fight a virus", ("reddit:askscience",)),
    Question("a fantasy series worth reading", ("reddit:books",)),
    Question("met my favourite author at a signing", ("reddit:books",)),
    Question("director prefers film over digital", ("reddit:movies",)),
    Question("old console games from my childhood", ("reddit:gaming",)),
    Question("buzzer beater from half court", ("reddit:nba",)),
    Question("goalkeeper saves a penalty", ("reddit:soccer",)),
    Question("battery drains overnight", ("reddit:android", "reddit:apple", "customer_care")),
    Question("internet provider throttles streaming", ("reddit:technology",)),
    Question("agency reads emails without a warrant", ("reddit:technology",)),
    Question("web framework for beginners", ("reddit:python", "reddit:programming")),
    Question("code review that went wrong", ("reddit:programming", "reddit:python")),
    Question("customer yells at the cashier about a coupon", ("reddit:talesfromretail",)),
    Question("the computer was not plugged in", ("reddit:talesfromtechsupport",)),
    Question("my boyfriend secretly reads my messages", _COUPLES),
    Question("backpacking through South America", ("reddit:travel",)),
    Question("my suitcase never arrived", ("customer_care",)),
    Question("flight cancelled because of snow, no hotel", ("customer_care",)),
    Question("phone restarts again and again since the update", ("customer_care", "reddit:apple",
                                                                 "reddit:android")),
    Question("refugees crossing the border", ("facebook",)),
)  # fmt: skip
