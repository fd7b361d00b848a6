"""How much replies repeat themselves, and each other, in token ids."""

from collections.abc import Sequence

from training.rollout import Episode


def without_end(episode: Episode) -> list[int]:
    """A reply's tokens without the one that ends it, which is the same in every reply that ends."""
    return episode.completion[:-1] if episode.ended else episode.completion


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def repeated(ids: Sequence[int], n: int = 4) -> float:
    """Share of a reply's n-grams that occurred earlier in it (seq-rep-n, Welleck et al. 2020); 0 without n-grams."""
    grams = ngrams(ids, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(replies: Sequence[Sequence[int]], n: int = 2) -> float:
    """Distinct n-grams of all replies together, as a share of all (Li et al. 2016). It falls with the amount of text,
    so compare equal amounts.
    """
    grams = [gram for ids in replies for gram in ngrams(ids, n)]
    return len(set(grams)) / len(grams) if grams else 1.0


def distinct_at_equal_length(new: Sequence[list[int]], other: Sequence[list[int]]) -> tuple[float, float]:
    """`distinct` of two versions' replies; the two replies to each prompt are cut to the shorter one's length first."""
    lengths = [min(len(a), len(b)) for a, b in zip(new, other, strict=True)]
    new_cut = [ids[:length] for ids, length in zip(new, lengths, strict=True)]
    other_cut = [ids[:length] for ids, length in zip(other, lengths, strict=True)]
    return distinct(new_cut), distinct(other_cut)
