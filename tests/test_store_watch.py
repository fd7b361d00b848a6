"""What there is to watch a loop by: lengths, KL, foreseen votes, sides; oldest first and never more than asked for."""

from tests.stores import BASE, candidate, cast, duel, outcome, published, store, take  # noqa: F401 (fixtures)


def test_lengths_are_of_finished_pairs(store):
    who = store.annotator("somebody")
    cut = store.start_duel(store.new_conversation(who), "Hi", [1], [candidate(1)] * 2)
    store.finish_duel(cut, [outcome("x", [1], "stopped")] * 2)
    long = store.start_duel(store.new_conversation(who), "Hi", [1], [candidate(1)] * 2)
    store.finish_duel(long, [outcome("x", [1, 2, 3, 4]), outcome("y", [1])])
    short = duel(store, who)
    assert [(r["duel"], r["policy"], r["tokens"]) for r in store.reply_lengths()] == [
        (long, 0, 2.5),
        (short["id"], 0, 2.0),
    ]
    assert [r["duel"] for r in store.reply_lengths(last=1)] == [short["id"]]


def test_kl_is_of_rounds_whose_gate_measured_it(store):
    version = published(store)
    store.request_round()
    row = take(store, config={"ppo.kl_target": 6.0})
    store.update_round(row["id"], "w1", metrics={"kl": 5.5})
    assert version == 1 and [(r["round"], r["version"], r["kl"], r["target"]) for r in store.round_kls()] == [
        (2, None, 5.5, 6.0)
    ]
    store.update_round(row["id"], "w1", metrics={"kl_target": 11.5})
    assert [r["target"] for r in store.round_kls()] == [11.5], "its own, where it went on from a version"


def test_foreseen_votes_are_those_with_an_opinion(store):
    votes = [cast(store) and store.row("select max(id) as id from vote")["id"] for _ in range(3)]
    store.add_forecasts([(votes[0], 0.7, True), (votes[1], None, None), (votes[2], 0.4, False)])
    assert [(r["vote"], r["probability"], r["hit"]) for r in store.forecast_history()] == [
        (votes[0], 0.7, 1),
        (votes[2], 0.4, 0),
    ]


def test_sides_are_of_current_votes_for_a_or_b(store):
    for choice in ("a", "tie", "b", "skip"):
        cast(store, choice)
    row = cast(store, "a")
    store.vote(row["id"], row["annotator"], "b", row["right"]["message"])
    assert [r["choice"] for r in store.position_votes()] == ["a", "b", "b"]
