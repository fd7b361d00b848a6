"""How far people agree who judged the same, and whether somebody prefers a side: pure functions of what was chosen.

Choices are nominal: two are the same or they are not. A tie is a class of its own.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

EXACT_UP_TO = 1000  # choices; above, the binomial distribution is as good as normal


def cohens_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """κ = (p_o − p_e) / (1 − p_e) of two people, from what each said of the same things (Cohen 1960). None where it is
    not defined: nothing was judged by both, or both always said the same one thing.
    """
    if not pairs:
        return None
    n = len(pairs)
    observed = sum(one == other for one, other in pairs) / n
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    expected = sum(first[choice] * second[choice] for choice in first) / n**2
    return (observed - expected) / (1 - expected) if expected < 1 else None


def krippendorffs_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """α = 1 − D_o / D_e for nominal data, any number of people and missing values (Krippendorff 2011). A unit is what
    people said of one thing; one person's alone says nothing. None where it is not defined: no unit has two values, or
    all values are the same.
    """
    totals: Counter[Hashable] = Counter()
    disagreement = 0.0  # of the coincidence matrix off its diagonal
    for values in units:
        m = len(values)
        if m < 2:
            continue
        counts = Counter(values)
        totals += counts
        disagreement += sum(count * (m - count) for count in counts.values()) / (m - 1)
    n = totals.total()
    expected = n**2 - sum(count**2 for count in totals.values())
    return 1 - (n - 1) * disagreement / expected if expected else None


def sign_test(successes: int, n: int) -> float:
    """Two-sided p-value of so many successes in n tosses of a fair coin."""
    if n == 0:
        return 1.0
    distance = abs(2 * successes - n)
    if n > EXACT_UP_TO:
        return math.erfc(max(0, distance - 1) / math.sqrt(2 * n))  # with the correction for continuity
    fewer = (n - distance) // 2
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**n))


def longest_run(choices: Iterable[Hashable], of: Sequence[Hashable]) -> int:
    """The longest run of one and the same of the choices `of`, which every other choice ends."""
    longest = run = 0
    before: Hashable = None
    for choice in choices:
        run = (run + 1 if choice == before else 1) if choice in of else 0
        longest = max(longest, run)
        before = choice
    return longest
