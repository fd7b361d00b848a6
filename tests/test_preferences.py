"""Votes to examples, their split, and the likelihood of a vote."""

import json
import math

import numpy as np
import pytest
import torch

from training import likelihood, preferences
from training.preferences import TIE, A, B, CountedVote, Pair, PointwiseLabel, Preferences

LN2, LN4 = math.log(2), math.log(4)


def vote(n, conversation=None, choice="a", annotator=1, prompt=(1,)):
    """The n-th vote, on two replies of its own."""
    return {
        "vote": n,
        "annotator": annotator,
        "conversation": conversation or n,
        "duel": n,
        "choice": choice,
        "prompt": list(prompt),
        "left_ids": [10 + n, 2],
        "right_ids": [500 + n, 2],
    }


def collect(votes=(), ratings=(), demonstrations=(), fraction=0.2, annotator_weight=1000.0, seed=0):
    return preferences.collect(
        list(votes),
        list(ratings),
        list(demonstrations),
        lambda text: [ord(c) for c in text],
        heldout_fraction=fraction,
        annotator_weight=annotator_weight,
        seed=seed,
    )


def groups(part):
    return {example.group for example in [*part.pairs, *part.labels]}


# -- likelihood


def davidson(sa, sb, nu):
    scores_a, scores_b = torch.full((3,), sa), torch.full((3,), sb)
    return likelihood.pair_nll(scores_a, scores_b, torch.tensor([A, TIE, B]), torch.tensor(math.log(nu))).tolist()


def test_pair_nll_by_hand():
    # e^sa = 4, e^sb = 1, e^((sa+sb)/2) = 2, ν = 1: P = 4/7, 2/7, 1/7
    assert davidson(LN4, 0.0, 1.0) == pytest.approx([0.5596158, 1.2527630, 1.9459101])


def test_nu_weighs_the_tie():
    # the same scores with ν = 1/2: 4, 1, 1 of 6
    assert davidson(LN4, 0.0, 0.5) == pytest.approx([0.4054651, 1.7917595, 1.7917595])


def test_the_three_outcomes_sum_to_one():
    assert sum(math.exp(-nll) for nll in davidson(0.3, -1.7, 0.6)) == pytest.approx(1)


def test_only_the_difference_of_scores_counts():
    assert davidson(LN4 + 5, 5.0, 1.0) == pytest.approx([0.5596158, 1.2527630, 1.9459101], abs=1e-5)


def test_derivatives_are_those_of_the_likelihood():
    delta, log_nu = torch.tensor([0.7, -1.3, 0.2], dtype=torch.double), torch.tensor(-0.4, dtype=torch.double)
    gradient, hessian = likelihood.pair_derivatives(delta / 2, -delta / 2, torch.tensor([A, TIE, B]), log_nu)
    for n, outcome in enumerate((A, TIE, B)):

        def nll(eta, outcome=outcome):
            return likelihood.pair_nll(eta[:1] / 2, -eta[:1] / 2, torch.tensor([outcome]), eta[1]).sum()

        at = torch.stack([delta[n], log_nu])
        torch.testing.assert_close(gradient[n], torch.func.grad(nll)(at))
        torch.testing.assert_close(hessian[n], torch.func.hessian(nll)(at))


def test_a_tie_pulls_scores_together():
    """Ties dropped bias the strength of preference (arXiv 2410.05328)."""
    sa, sb = torch.tensor([1.0], requires_grad=True), torch.tensor([0.0], requires_grad=True)
    likelihood.pair_nll(sa, sb, torch.tensor([TIE]), torch.tensor(-1.0)).sum().backward()
    assert sa.grad.item() > 0 > sb.grad.item()


def test_a_vote_for_a_pushes_scores_apart():
    sa, sb = torch.tensor([0.0], requires_grad=True), torch.tensor([0.0], requires_grad=True)
    likelihood.pair_nll(sa, sb, torch.tensor([A]), torch.tensor(-1.0)).sum().backward()
    assert sa.grad.item() < 0 < sb.grad.item()


def test_pointwise_nll_by_hand():
    # σ(ln 3) = 3/4: −ln 3/4 for good, −ln 1/4 for bad; on the threshold ln 2
    score = torch.tensor([math.log(3) + 1, math.log(3) + 1, 1.0])
    nll = likelihood.pointwise_nll(score, torch.tensor([1, 0, 1]), torch.tensor(1.0))
    assert nll.tolist() == pytest.approx([0.2876821, 1.3862944, LN2])


def test_count_correct_leaves_ties_out_and_counts_equal_scores_half():
    a, b = np.array([2.0, 2.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0, 5.0])
    assert preferences.count_correct(a, b, np.array([A, B, A, TIE])) == (1.5, 3)


# -- collecting


def test_votes_become_pairs_in_the_order_left_right():
    prefs = collect([vote(1, choice="a"), vote(2, choice="b"), vote(3, choice="tie"), vote(4)])
    assert [(prefs.replies[p.left], prefs.replies[p.right], p.outcome, p.vote) for p in prefs.pairs[:3]] == [
        (([1], [11, 2]), ([1], [501, 2]), A, 1),
        (([1], [12, 2]), ([1], [502, 2]), B, 2),
        (([1], [13, 2]), ([1], [503, 2]), TIE, 3),
    ]


def test_the_same_reply_is_stored_once():
    first, second = vote(1), vote(2)
    second["left_ids"] = first["left_ids"]
    prefs = collect([first, second])
    assert len(prefs.replies) == 3 and prefs.pairs[0].left == prefs.pairs[1].left


def test_the_same_words_to_another_prompt_are_another_reply():
    first, second = vote(1), vote(2, prompt=(7,))
    second["left_ids"] = first["left_ids"]
    assert len(collect([first, second]).replies) == 4


def test_two_equal_replies_say_nothing():
    same = vote(1)
    same["right_ids"] = same["left_ids"]
    assert collect([same]).pairs == []


def test_both_bad_is_two_bad_labels_of_half_a_weight_and_no_pair():
    prefs = collect([vote(1, choice="both_bad"), vote(2), vote(3), vote(4)])
    assert prefs.labels == [
        PointwiseLabel(0, False, 0.5, "conversation 1", 1),
        PointwiseLabel(1, False, 0.5, "conversation 1", 1),
    ]
    assert [pair.annotator for pair in prefs.pairs] == [1, 1, 1]
    assert [pair.vote for pair in prefs.pairs] == [2, 3, 4]


def test_thumbs_are_pointwise_labels():
    thumbs = [
        {"annotator": 1, "conversation": 9, "thumb": t, "prompt": [1], "completion": [30 + t, 2]} for t in (1, -1)
    ]
    labels = collect(ratings=thumbs).labels
    assert [(label.reply, label.good, label.weight) for label in labels] == [(0, True, 1.0), (1, False, 1.0)]


def test_an_edited_reply_is_a_pair_of_after_over_before():
    prefs = collect(
        demonstrations=[{"annotator": 1, "conversation": 9, "after": "AB", "prompt": [1], "completion": [30, 2]}]
    )
    assert prefs.replies == [([1], [65, 66]), ([1], [30, 2])]
    assert [(p.left, p.right, p.outcome, p.weight, p.vote) for p in prefs.pairs] == [(0, 1, A, 1.0, None)]


def test_an_annotators_total_weight_is_capped():
    votes = [vote(n, annotator=1) for n in range(1, 9)] + [vote(9, annotator=2)]
    prefs = collect(votes, annotator_weight=4.0)
    assert [pair.weight for pair in prefs.pairs] == [0.5] * 8 + [1.0]


def test_thumbs_and_edits_count_towards_the_cap():
    thumb = {"annotator": 1, "conversation": 1, "thumb": 1, "prompt": [1], "completion": [30, 2]}
    edit = {"annotator": 1, "conversation": 1, "after": "AB", "prompt": [1], "completion": [30, 2]}
    prefs = collect([vote(1), vote(2)], [thumb], [edit], annotator_weight=1.0)
    assert {example.weight for example in [*prefs.pairs, *prefs.labels]} == {0.25}


def test_preferences_are_the_same_after_a_file():
    thumb = {"annotator": 1, "conversation": 9, "thumb": 1, "prompt": [1], "completion": [30, 2]}
    prefs = collect([vote(n, choice=choice) for n, choice in enumerate(("a", "tie", "b", "both_bad"), 1)], [thumb])
    assert prefs.heldout and prefs.pairs and prefs.labels
    assert Preferences.from_json(json.loads(json.dumps(prefs.as_json()))) == prefs


def test_the_file_of_preferences_has_examples_as_lists():
    """A round that an earlier version began goes on from it."""
    prefs = Preferences(
        replies=[([1], [2]), ([1], [3])],
        pairs=[Pair(0, 1, B, 0.5, "conversation 1", 7)],
        labels=[PointwiseLabel(1, False, 0.5, "conversation 1")],
        votes=[CountedVote(7, "conversation 1")],
        heldout=frozenset({"conversation 1"}),
    )
    assert json.loads(json.dumps(prefs.as_json())) == {
        "replies": [[[1], [2]], [[1], [3]]],
        "pairs": [[0, 1, 2, 0.5, "conversation 1", 7, False, None]],
        "points": [[1, 0, 0.5, "conversation 1", None]],
        "votes": [[7, "conversation 1"]],
        "heldout": ["conversation 1"],
        "split_by": "conversation",
    }


# -- splitting


def test_chats_of_one_dialogue_are_one_group():
    """Each request of another program is a chat; turns of one dialogue were on both sides of the split."""
    votes = [{**vote(n), "dialogue": (n + 1) // 2} for n in range(1, 11)]
    prefs = collect(votes)
    assert [counted.group for counted in prefs.votes][:3] == ["conversation 1", "conversation 1", "conversation 2"]
    few = collect([{**vote(n, prompt=(n,)), "dialogue": 1} for n in range(1, 11)])
    assert few.split_by == "context", "ten chats of one dialogue are one conversation"


def test_the_split_never_cuts_a_conversation():
    """The same conversation in both parts lets a model score held-out votes by recognising the topic."""
    choices = ("a", "b", "tie", "both_bad")
    prefs = collect([vote(n, conversation=n // 3 + 1, choice=choices[n % 4]) for n in range(40)])
    assert prefs.split_by == "conversation"
    assert prefs.heldout and not groups(prefs.training_part()) & groups(prefs.heldout_part())
    parts = prefs.training_part(), prefs.heldout_part()
    assert sum(len(part.pairs) for part in parts) == 30 and sum(len(part.labels) for part in parts) == 20


def test_under_four_conversations_the_split_is_by_context():
    prefs = collect([vote(n, conversation=1 + n % 3, prompt=[n]) for n in range(1, 13)])
    assert prefs.split_by == "context"
    assert len(groups(prefs)) == 12
    assert 0 < len(prefs.heldout_part().pairs) < 12


def test_what_was_said_of_one_context_stays_together_under_four_conversations():
    """A thumb or an edit of a held-out duel's reply would give its vote away."""
    thumb = {"annotator": 1, "conversation": 1, "thumb": 1, "prompt": [3], "completion": [13, 2]}
    edit = {"annotator": 1, "conversation": 1, "after": "AB", "prompt": [3], "completion": [13, 2]}
    prefs = collect([vote(n, conversation=1, prompt=[n]) for n in range(1, 6)], [thumb], [edit])
    assert len({pair.group for pair in prefs.pairs}) == 5
    assert prefs.labels[0].group == prefs.pairs[2].group == prefs.pairs[-1].group


def test_four_conversations_are_split_whole():
    assert collect([vote(n) for n in range(1, 5)]).split_by == "conversation"


def test_the_split_depends_on_the_seed_alone():
    votes = [vote(n) for n in range(1, 41)]
    assert collect(votes, seed=3).heldout == collect(votes, seed=3).heldout
    assert collect(votes, seed=3).heldout == collect(votes[::-1], seed=3).heldout
    assert collect(votes, seed=3).heldout != collect(votes, seed=4).heldout


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_held_out_groups_hold_about_the_fraction_asked_for(fraction):
    names = [f"conversation {n}" for n in range(60) for _ in range(1 + n % 3)]  # 120 entries, at most 3 a group
    chosen = preferences.held_out(names, fraction, 0)
    held = sum(name in chosen for name in names)
    assert fraction * 120 - 3 <= held <= fraction * 120


def test_something_is_held_out_of_two_groups():
    assert len(preferences.held_out(["conversation 1", "conversation 2"], 0.2, 0)) == 1


def test_nothing_is_held_out_of_one_group():
    assert preferences.held_out(["conversation 1"] * 5, 0.2, 0) == frozenset()


def test_folds_keep_groups_whole_and_are_of_like_size():
    names = [f"conversation {n}" for n in range(12) for _ in range(2)]
    fold = preferences.folds(names, 5, 0)
    assert set(fold) == set(names)
    assert sorted(list(fold.values()).count(k) for k in range(5)) == [2, 2, 2, 3, 3]


def test_folds_do_not_depend_on_the_order_of_votes():
    names = [f"conversation {n}" for n in range(12)]
    assert preferences.folds(names, 5, 0) == preferences.folds(names[::-1], 5, 0)
