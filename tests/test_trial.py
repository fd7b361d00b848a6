"""A version on trial: what the votes say, which pairs are shown, and how a trial ends."""

import random
from collections import Counter

import pytest

from playground.chat.session import Chat
from playground.models import loading, trial
from playground.models.trial import Tally
from playground.serving.engine import Engine
from playground.settings import Settings
from playground.store import Store
from tests.chats import slow
from tests.test_engine import publish as publish_into
from tests.tiny import tiny_folder

USUAL = Settings(_env_file=None)


# -- what the votes say


def ends(win_rate, rng, settings=USUAL):
    """How the trial of a version that wins this share of its pairs ends, looked at after every vote; and after how
    many.
    """
    wins = 0
    for pairs in range(1, settings.trial.duels + 1):
        wins += rng.random() < win_rate
        if ended := trial.verdict(Tally(wins, pairs - wins), settings):
            return ended, pairs
    raise AssertionError("a trial ends with its last pair")


def share_rolled_back(win_rate, trials=4000):
    rng = random.Random(0)
    return sum(ends(win_rate, rng)[0] == "rolled_back" for _ in range(trials)) / trials


def test_a_version_made_worse_is_rolled_back_and_an_equal_one_is_not():
    assert share_rolled_back(0.2) >= 0.9
    assert share_rolled_back(0.5) <= 0.06
    assert share_rolled_back(0.7) <= 0.01


@pytest.mark.parametrize("duels, error", [(1, 0.06), (7, 0.06), (25, 0.06), (100, 0.01), (25, 0.4)])
def test_the_bounds_spend_no_more_than_the_error(duels, error):
    """Of two equal versions, exactly: the probability of every sequence of votes that meets a bound."""
    going_on = {0: 1.0}
    crossed = 0.0
    for bound in trial.most_wins(duels, error):
        after = Counter()
        for wins, probability in going_on.items():
            after[wins] += probability / 2
            after[wins + 1] += probability / 2
        crossed += sum(probability for wins, probability in after.items() if wins <= bound)
        going_on = {wins: probability for wins, probability in after.items() if wins > bound}
    assert error / 2 * (duels >= 7) <= crossed <= error


def test_the_probability_that_people_prefer_it():
    assert Tally(0, 0).better == 0.5
    assert Tally(3, 0).better == pytest.approx(1 - 0.5**4)
    assert Tally(2, 6).better == pytest.approx(1 - Tally(6, 2).better)


def test_a_trial_ends_early_when_people_clearly_prefer_it_and_at_the_latest_after_its_pairs():
    assert trial.verdict(Tally(0, 0, ties=30), USUAL) is None
    assert trial.verdict(Tally(2, 0), USUAL) is None
    assert trial.verdict(Tally(8, 1), USUAL) == "kept"
    assert trial.verdict(Tally(13, 11), USUAL) is None
    assert trial.verdict(Tally(13, 12), USUAL) == "undecided"
    assert trial.verdict(Tally(20, 18), USUAL) == "undecided", "more votes than were asked for"
    assert trial.verdict(Tally(0, 7), USUAL) == "rolled_back"
    assert trial.verdict(Tally(0, 26), USUAL) == "rolled_back", "many votes may come between two looks"


def ends_with(crowd, rng, people=None):
    """How a trial ends where each of `crowd` {annotator: (share of the votes, win rate)} votes, and after how many
    votes.
    """
    votes = []
    while True:
        annotator = rng.choices(list(crowd), [share for share, _ in crowd.values()])[0]
        votes.append(trial.Decided(annotator, rng.random() < crowd[annotator][1]))
        tally = trial.counted(votes, len(crowd) if people is None else people)
        if ended := trial.verdict(tally, USUAL):
            return ended, len(votes)


@pytest.mark.parametrize(
    ("crowd", "least", "most"),
    [
        ({1: (1, 0.5), 2: (1, 0.5)}, 0, 0.07),
        ({1: (4, 0.5), 2: (1, 0.5)}, 0, 0.06),
        ({1: (1, 0.2)}, 0.9, 1),
        ({1: (1, 0.2), 2: (1, 0.2)}, 0.9, 1),
        ({1: (1, 0.2), 2: (1, 0.2), 3: (1, 0.2)}, 0.9, 1),
        ({1: (4, 0.2), 2: (1, 0.2)}, 0.45, 1),  # the price: little is said by the others
        ({1: (9, 0.0), 2: (1, 1.0)}, 0, 0.02),  # one person against another
    ],
)
def test_how_often_a_version_is_rolled_back_where_several_people_vote(crowd, least, most):
    rng = random.Random(0)
    ends = [ends_with(crowd, rng) for _ in range(1500)]
    assert max(votes for _, votes in ends) <= 25
    assert least <= sum(ended == "rolled_back" for ended, _ in ends) / len(ends) <= most


def test_one_person_does_not_decide_a_trial_for_the_others():
    lost = [trial.Decided(1, False)] * 12
    alone = trial.counted(lost, people=1)
    assert (alone.losses, alone.left_out, trial.verdict(alone, USUAL)) == (12, 0, "rolled_back")
    among_others = trial.counted(lost, people=2)
    assert (among_others.losses, among_others.left_out, trial.verdict(among_others, USUAL)) == (3, 9, None)
    liked = trial.counted([trial.Decided(1, True)] * 12, people=2)
    assert trial.verdict(liked, USUAL) is None, "nor is it kept early by one"
    agreed = trial.counted([*lost, *[trial.Decided(2, False)] * 4], people=2)
    assert (agreed.losses, agreed.left_out, trial.verdict(agreed, USUAL)) == (12, 4, "rolled_back")
    over = trial.counted([*lost, *lost, trial.Decided(2, True)], people=2)
    assert (over.decided, trial.verdict(over, USUAL)) == (4, "undecided")
    assert "21 more are of one person" in str(trial.reason("undecided", over, 1))


def test_opponents_have_their_shares():
    rng = random.Random(0)
    greedy = USUAL.with_values(trial={"before_share": 0.9, "base_share": 0.9})
    for settings, against_base, expected in (
        (USUAL, False, {"before": 0.45, "base": 0.2, None: 0.35}),
        (USUAL, True, {"before": 0.65, None: 0.35}),
        (greedy, False, {"before": 0.9, "base": 0.1}),
        (greedy, True, {"before": 1.0}),
    ):
        drawn = Counter(trial.opponent(rng, settings, against_base) for _ in range(10_000))
        assert {who for who, _ in drawn} == set(expected)
        for (who, probability), n in drawn.items():
            assert probability == pytest.approx(expected[who])
            assert n / 10_000 == pytest.approx(expected[who], abs=0.02)


# -- in the chat


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"))


class Scene:
    """A chat whose live version is on trial. The engine's thread decodes; the test looks after the versions."""

    def __init__(self, folder, data_dir, **changes):
        self.settings = Settings(
            model=str(folder),
            data_dir=data_dir,
            threads=1,
            dtype="float32",
            decode_format="float32",
            chat={"reply_tokens": 12, "stream_hz": 50},
            round={"poll_seconds": 60},
            _env_file=None,
        ).with_values(**changes)
        self.store = Store()
        self.start()

    def start(self):
        """Also a restart: another engine on the same store."""
        base, tokenizer = loading.load_trunk(self.settings), loading.load_tokenizer(self.settings)
        self.engine = Engine(self.store, self.settings, base, tokenizer)
        self.base = self.engine.base
        self.identity = self.engine.identity
        self.engine.start()
        self.chat = Chat(self.store, self.engine, self.settings, random.Random(0))

    def publish(self, size=0.05):
        version = publish_into(self, size, trial=True)
        self.follow()
        return version

    def follow(self):
        self.engine.versions.follow_store()
        self.engine.versions.follow_trial()

    def turn(self, annotator, better):
        """One turn; `better(left version, right version)` gives the choice. Returns the duel."""
        view = list(self.chat.send(annotator, "Tell me something"))[-1]
        if view.phase == "same":
            return None
        duel = self.store.duel(view.duel)
        self.chat.vote(annotator, view.duel, better(duel["left"]["policy"], duel["right"]["policy"]))
        return duel


@pytest.fixture
def scene(folder, tmp_path):
    scene = Scene(folder, tmp_path)
    yield scene
    scene.engine.close()


def newest(left, right):
    return "tie" if left == right else "a" if left > right else "b"


def oldest(left, right):
    return newest(right, left)


def test_pairs_of_both_versions_are_shown_blind_and_counted(scene):
    scene.publish()
    version = scene.publish()
    ann = scene.store.annotator("ann")
    view = list(scene.chat.send(ann, "Hello"))[-1]
    assert view.left.version is view.right.version is None, "nobody votes by the version"
    scene.chat.vote(ann, view.duel, "skip")
    duels = [duel for _ in range(14) if (duel := scene.turn(ann, newest))]
    seen = Counter((duel["left"]["policy"], duel["right"]["policy"]) for duel in duels)
    assert (2, 1) in seen or (1, 2) in seen
    crossed = [duel for duel in duels if duel["left"]["policy"] != duel["right"]["policy"]]
    assert {duel["pairing"] for duel in crossed} == {"champion_challenger"}
    assert {duel["probability"] for duel in crossed} <= {0.45, 0.2}
    row = scene.store.trial(version)
    counted = scene.store.votes_on_trial(row)
    assert counted == {"wins": seen[2, 1] + seen[1, 2], "losses": 0, "ties": 0}
    swapped = {**row, "version": row["against"], "against": version}
    assert scene.store.votes_on_trial(swapped) == {"wins": 0, "losses": counted["wins"], "ties": 0}
    assert scene.store.votes_on_trial(row, annotator=ann) == counted
    assert scene.store.votes_on_trial(row, annotator=ann + 1)["wins"] == 0
    decided = scene.store.decided_on_trial(row)
    assert [(vote["annotator"], vote["won"]) for vote in decided] == [(ann, True)] * counted["wins"]
    assert scene.store.people_of_trial(row, 3) == 1
    assert scene.store.people_of_trial(row, 1000) == 0
    newest_vote = scene.store.one("select max(id) as id from vote")["id"]
    later = {**row, "after_vote": newest_vote}
    assert scene.store.votes_on_trial(later)["wins"] == 0, "votes from before a trial are not its"
    assert scene.store.people_of_trial(later, 3) == 1, "who voted before takes part from the first vote on"


def test_a_version_that_people_do_not_prefer_is_rolled_back_by_itself(scene):
    scene.publish()
    version = scene.publish()
    ann = scene.store.annotator("ann")
    for _ in range(60):
        scene.turn(ann, oldest)
        scene.follow()
        if scene.engine.live.version == 1:
            break
    ended = scene.store.trial(version)
    assert ended["state"] == "rolled_back"
    assert "people preferred v1 in" in str(ended["reason"])
    assert scene.store.policy(version)["status"] == "rolled_back" and scene.store.live_policy()["version"] == 1
    scene.follow()
    assert scene.engine.live.version == 1
    assert scene.store.open_trial()["version"] == 1, "its own trial against the base goes on"
    duels = [duel for _ in range(6) if (duel := scene.turn(ann, newest))]
    assert {duel[side]["policy"] for duel in duels for side in ("left", "right")} <= {0, 1}


def test_a_version_that_people_prefer_is_kept(scene):
    version = scene.publish()
    ann = scene.store.annotator("ann")
    for _ in range(30):
        scene.turn(ann, newest)
        scene.follow()
    ended = scene.store.trial(version)
    assert ended["state"] == "kept" and "people preferred it to v0 (base) in" in str(ended["reason"])
    assert scene.store.live_policy()["version"] == version


def test_one_of_several_people_does_not_roll_a_version_back(scene):
    scene.publish()
    version = scene.publish()
    one, other = scene.store.annotator("one"), scene.store.annotator("other")
    for _ in range(6):
        scene.turn(other, lambda left, right: "tie")
    for _ in range(60):
        scene.turn(one, oldest)
        scene.follow()
        if len(scene.store.decided_on_trial(scene.store.trial(version))) == 9:
            break
    assert len(scene.store.decided_on_trial(scene.store.trial(version))) == 9, "seven are enough for one alone"
    assert scene.store.people_of_trial(scene.store.trial(version), 3) == 2
    assert scene.store.open_trial()["version"] == version
    for _ in range(60):
        scene.turn(other, oldest)
        scene.follow()
        if scene.engine.live.version != version:
            break
    assert scene.store.trial(version)["state"] == "rolled_back"


def test_a_trial_goes_on_after_a_restart(scene):
    scene.publish()
    version = scene.publish()
    scene.engine.close()
    scene.start()
    on_trial = scene.engine.versions.on_trial
    assert (on_trial.new.version, on_trial.before.version) == (version, 1)
    assert scene.store.open_trial()["version"] == version


def test_a_trial_rests_while_another_version_answers(scene):
    first, second = scene.publish(), scene.publish()
    assert not scene.store.trial(first)["live"]
    assert scene.store.open_trial()["version"] == second and scene.store.open_trial()["against"] == first
    scene.store.roll_back(first)
    scene.follow()
    assert scene.store.open_trial()["version"] == first and scene.engine.versions.on_trial.new.version == first


def test_a_version_that_never_answered_ends_no_trial(scene):
    first, second = scene.publish(), scene.publish()
    scene.publish(float("nan"))
    scene.follow()
    assert scene.engine.live.version == second and scene.store.open_trial()["version"] == second
    assert scene.engine.versions.on_trial.before.version == first


def test_a_trial_without_the_other_version_is_over(scene):
    """Its folder was deleted while the server was down."""
    first, second = scene.publish(), scene.publish()
    scene.engine.close()
    for file in (scene.settings.adapters_dir / f"v{first:04d}").iterdir():
        file.unlink()
    scene.start()
    assert scene.engine.live.version == second and scene.engine.versions.on_trial is None
    assert scene.store.trial(second)["state"] == "undecided"
    assert f"v{first}" in str(scene.store.trial(second)["reason"])


def test_an_early_vote_and_stop_work_on_a_pair_of_versions(scene):
    scene.publish()
    scene.engine.versions.match = lambda rng: versions_match(scene)
    slow(scene.chat)  # the vote comes before the replies have ended, also on a busy machine
    ann = scene.store.annotator("ann")
    views = scene.chat.send(ann, "Hello")
    voted = None
    for view in views:
        if voted is None and view.left and view.left.text and view.right.text and view.left.text != view.right.text:
            voted = scene.chat.vote(ann, view.duel, "a")
    assert view.phase == "voted" and view.choice == "a"
    duel = scene.store.duel(view.duel)
    assert {duel["left"]["policy"], duel["right"]["policy"]} == {0, 1}
    assert duel["pairing"] == "champion_challenger"


def versions_match(scene):
    from playground.serving.versions import Match

    on_trial = scene.engine.versions.on_trial
    return Match(on_trial.new, on_trial.before, 0.65)


def test_one_side_that_fails_ends_the_turn(scene):
    scene.publish()
    scene.engine.versions.match = lambda rng: versions_match(scene)
    ann = scene.store.annotator("ann")

    class Broken:
        def __getattr__(self, name):
            raise RuntimeError("this version is broken")

    scene.engine.versions.on_trial.before.forward = Broken()
    from playground.chat.refusals import Refused

    with pytest.raises(Refused, match="could not answer"):
        list(scene.chat.send(ann, "Hello"))
    assert not scene.chat.busy(ann) and not scene.engine.versions.on_trial.new.streams


@pytest.mark.parametrize("begun", [False, True])
def test_without_trials_the_gate_alone_decides(folder, tmp_path, begun):
    """Also where a trial was open when the setting was changed."""
    scene = Scene(folder, tmp_path, trial={"duels": 0})
    try:
        publish_into(scene, trial=begun)
        scene.follow()
        assert scene.engine.versions.on_trial is None and scene.engine.versions.match(random.Random(0)) is None
        assert scene.store.open_trial() is None
    finally:
        scene.engine.close()
