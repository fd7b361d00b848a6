"""How people vote: agreement on pairs that two judged, speed, sides and streaks; and people left out of training."""

import math

import pytest

from playground.data import quality
from playground.data.__main__ import main
from playground.data.agreement import cohens_kappa, krippendorffs_alpha, longest_run, sign_test
from playground.store import Filters, Store, StoreError
from playground.system.languages import Words
from playground.ui.quality import learnt_text, quality_html
from tests.stores import BASE, cast, duel, published, take
from tests.test_queue import judge, listed, show_again
from tests.test_queue import take as take_prompt

# -- the coefficients


def test_krippendorffs_alpha_is_that_of_the_literature():
    """Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), examples A, B and C, nominal."""
    binary = ("0100000010", "1110010000")
    assert krippendorffs_alpha(list(zip(*binary, strict=True))) == pytest.approx(0.095, abs=5e-4)
    letters = ("aabbdcccedda", "babbbccceddd")
    assert krippendorffs_alpha(list(zip(*letters, strict=True))) == pytest.approx(0.692, abs=5e-4)
    four_with_gaps = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    units = [[value for value in unit if value != "."] for unit in zip(*four_with_gaps, strict=True)]
    assert krippendorffs_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_cohens_kappa_of_a_table_worked_by_hand():
    """50 cases: both yes 20, both no 15. p_o = .7, p_e = .5 · .6 + .5 · .4 = .5."""
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohens_kappa(pairs) == pytest.approx(0.4)
    assert cohens_kappa([("a", "b"), ("b", "a")]) == pytest.approx(-1)


def test_where_agreement_is_not_defined_there_is_no_number():
    assert cohens_kappa([]) is None and cohens_kappa([("a", "a")] * 3) is None
    assert krippendorffs_alpha([]) is None and krippendorffs_alpha([["a"], ["b"]]) is None
    assert krippendorffs_alpha([["a", "a"]]) is None


def test_the_sign_test_is_the_binomial_of_a_fair_coin():
    assert sign_test(0, 5) == sign_test(5, 5) == 2 / 32 and sign_test(9, 10) == 22 / 1024
    assert sign_test(5, 10) == 1 and sign_test(0, 0) == 1
    exact = 2 * sum(math.comb(1001, k) for k in range(442)) / 2**1001
    assert sign_test(560, 1001) == pytest.approx(exact, rel=0.02), "by the normal distribution"
    assert sign_test(1_000_000, 1_000_000) < 1e-9


def test_a_run_is_ended_by_every_other_choice():
    assert longest_run(["a", "a", "tie", "a", "b", "b", "b"], ("a", "b")) == 3
    assert longest_run(["a", "a", "tie", "a"], ("a", "b")) == 2 and longest_run(["tie", "tie"], ("a", "b")) == 0


# -- of a store


def judged_twice(store, *choices):
    """Pairs that ann and then bob judge, by (ann's choice, bob's choice), each as seen on their own screen."""
    for one, other in choices:
        assert take_prompt(store, "ann")[1] is False
        judge(store, "ann", one)
        assert take_prompt(store, "bob")[1] is True
        row = show_again(store, "bob")
        store.vote(row["id"], store.annotator("bob"), other, row["left"]["message"], dwell_ms=4000)


@pytest.fixture
def twice():
    """Four pairs: alike on the first two (b is a's swapped side), not on the others."""
    texts = [f"prompt {n}" for n in range(4)]
    store = listed(*texts, twice=texts)
    judged_twice(store, ("a", "b"), ("tie", "tie"), ("a", "a"), ("b", "tie"))
    return store


def test_a_second_vote_is_compared_by_the_first_ones_sides(twice):
    rows = [(row["one"], row["other"]) for row in twice.judged_twice()]
    assert rows == [("b", "tie"), ("a", "b"), ("tie", "tie"), ("a", "a")], "the newest first"
    found = quality.read(twice)
    assert found.pairs == 4 and found.alpha == pytest.approx(krippendorffs_alpha(rows))
    [couple] = found.couples
    assert (couple.first, couple.second) == (1, 2) and (couple.agreement.pairs, couple.agreement.agreed) == (4, 2)
    assert couple.agreement.kappa == pytest.approx(cohens_kappa(rows))
    ann, bob = found.people
    assert ann.others.kappa == pytest.approx(bob.others.kappa) and (ann.left, ann.decided) == (2, 3)
    assert (bob.seconds, ann.seconds, ann.ties) == (4.0, None, 1)


def test_what_does_not_count_says_nothing_about_agreement(twice):
    ann = twice.annotator("ann")
    first, second, third, _ = twice.rows("select d.conversation from duel d where d.repeats is null order by d.id")
    twice.delete_conversation(first["conversation"], ann)
    assert len(twice.judged_twice()) == 3
    twice.exclude_votes(Filters(person=ann), True)
    found = quality.read(twice)
    assert len(twice.judged_twice()) == 3 and found.pairs == 0 and found.alpha is None
    twice.allow_training(ann, False)
    assert twice.judged_twice() == [] and [person.person for person in quality.read(twice).people] == [2]


def test_a_persons_streak_side_and_speed():
    store = Store()
    who = store.annotator("ann")
    for choice, dwell in (("a", 1000), ("a", 9000), ("a", None), ("b", 2000), ("skip", 1)):
        row = duel(store, who)
        store.vote(row["id"], who, choice, row["left"]["message"], dwell_ms=dwell)
    [ann] = quality.read(store).people
    assert (ann.votes, ann.left, ann.decided, ann.streak, ann.ties, ann.seconds) == (4, 3, 4, 3, 0, 2.0)
    assert ann.side_p == sign_test(3, 4) and ann.others.pairs == 0


# -- left out of training


def test_nothing_that_a_person_says_is_learnt_from_while_an_admin_leaves_them_out():
    store = Store()
    row = cast(store, "a", store.annotator("ann"))
    cast(store, "b", store.annotator("bob"))
    ann = row["annotator"]
    store.rate(row["left"]["message"], ann, 1)
    store.demonstrate(row["left"]["message"], ann, "better")
    store.leave_out_person(ann, True)
    cast(store, "a", ann)  # also what they say later
    assert [vote["annotator"] for vote in store.votes_for_training(BASE)] == [2]
    assert store.ratings_for_training(BASE) == [] == store.demonstrations(BASE)
    assert [*store.thumbs()] == [] == [*store.edits()] and len([*store.judged_pairs()]) == 1 == len([*store.prompts()])
    assert store.new_votes() == 1
    listed_rows, _ = store.judged_page(Filters(), None, 10)
    assert [row["person_out"] for row in listed_rows] == [True, False, True], "an admin still sees the votes"
    store.leave_out_person(ann, False)
    assert len(store.votes_for_training(BASE)) == 3 and len(store.ratings_for_training(BASE)) == 1


def test_taking_a_person_in_again_leaves_single_votes_out():
    store = Store()
    cast(store, "a", store.annotator("ann"))
    store.exclude_vote(1, True)
    for left_out in (True, False):
        store.leave_out_person(1, left_out)
    assert store.votes_for_training(BASE) == []


@pytest.mark.parametrize("person", [7, 10**30])
def test_nobody_is_left_out_who_is_not_there(person):
    with pytest.raises(StoreError, match="There is no such person"):
        Store().leave_out_person(person, True)


def test_which_versions_have_learnt_from_a_vote_and_from_a_person():
    store = Store()
    votes = [cast(store, "a", store.annotator(name)) and n for n, name in enumerate(("ann", "bob"), 1)]
    store.leave_out_person(2, True)
    store.request_round()
    row = take(store)
    store.record_read_conversations(row["id"])
    store.record_used_votes(row["id"], [(1, False), (2, True)])
    version = store.add_policy(row["id"], "w1", parent=0)
    store.publish(row["id"], "w1", version, "nowhere", "abc", {})
    published(store, "w2")  # one that read nothing
    assert store.versions_of_votes(votes) == {1: [1]} and store.versions_of_votes([]) == {}
    assert store.versions_of_people() == {1: [1]} and store.learned_versions(2) == []


# -- shown to admins


def test_the_table_has_names_marks_an_uneven_side_and_asks_before_somebody_is_left_out(twice):
    for _ in range(20):
        cast(twice, "a", twice.annotator("ann"))
    twice.leave_out_person(2, True)
    html = quality_html(quality.read(twice), {1: "<Ann>"}, {1: list(range(1, 12))}, Words())
    assert "&lt;Ann&gt;" in html and "<Ann>" not in html and "person 2" in html
    assert 'class="unlikely"' in html and 'data-decision="out person 1"' in html
    assert "Leave everything that &lt;Ann&gt; says out" in html and 'data-decision="in person 2"' in html
    assert "the person is left out" in html and "Rounds learn from no pair that two people judged" in html
    assert "learnt by …, v4, v5, v6, v7, v8, v9, v10, v11" in html
    chinese = quality_html(quality.read(twice), {}, {}, Words("zh-CN"))
    assert "两人评过" in chinese and "Seconds" not in chinese
    assert learnt_text([3], Words()) == "learnt by v3"


def test_an_empty_store_says_so():
    store = Store()
    assert "Nobody has voted yet" in quality_html(quality.read(store), {}, {}, Words())
    cast(store)
    assert "No pair was judged by two people yet" in quality_html(quality.read(store), {}, {}, Words())


@pytest.mark.parametrize(("pairs", "few"), [(1, True), (19, True), (20, False), (500, False)])
def test_few_pairs_are_said_to_be_chance(pairs, few):
    person = quality.PersonQuality(1, 9, False, None, 5, 9, 1.0, 2, 0, quality.Agreement(pairs, 1, None))
    html = quality_html(quality.Quality(9, [person], pairs=pairs, alpha=0.5), {}, {}, Words())
    assert "α 0.50" in html and ("mostly chance" in html) == few


def test_the_command_shows_everybody_and_leaves_people_out(tmp_path, capsys):
    store = Store(tmp_path / "nudge.db")
    texts = ["prompt 1", "prompt 2"]
    listed(*texts, twice=texts, store=store)
    judged_twice(store, ("a", "b"), ("b", "b"))
    store.sign_in(store.annotator("bob"), "bob", 1e12)
    assert main(["quality", "--leave-out", "1", "--data-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "person 1 is left out of training" in out and "left out of training\n" in out
    assert "person 1 and bob: kappa 0.00 on 2 pairs" in out
    assert store.person(1)["left_out"] is not None
    assert main(["quality", "--take-in", "1", "--data-dir", str(tmp_path)]) == 0
    assert "Krippendorff's alpha: 0.00, on 2 pairs" in capsys.readouterr().out
    assert main(["quality", "--leave-out", "9", "--data-dir", str(tmp_path)]) == 1
