"""`python -m training.sft`: a file of demonstrations to a published version, on the tiny model."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from playground.models import adapter_reading, export, loading
from playground.settings import Settings
from playground.store import Store
from playground.store.reasons import LEFT
from playground.ui import gatewords, round_summary
from playground.ui.phases import phase_progress, phase_text
from playground.ui.words import CHINESE, Words
from tests import fake_hub
from tests.stores import cast
from tests.tiny import tiny_folder, tiny_tokenizer
from training import sft, sft_data, sft_train, worker
from training.rollout import Episode
from training.sft_data import CannotLearn

TOPICS = [
    *("boil an egg", "name a river", "sleep well", "learn to swim", "bake bread", "read faster", "plant a tree"),
    *("fix a tap", "write a letter", "save money", "clean a window", "make tea", "tie a knot", "find a job"),
    *("cook rice", "draw a cat", "ride a bike", "paint a wall", "pack a bag", "play chess"),
]
REPLY = "You can do that, and it is good."


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(reply=REPLY):
    return [{"prompt": f"How do I {topic}?", "completion": reply} for topic in TOPICS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture
def command(folder, tmp_path):
    """Settings that take 20 demonstrations through all phases in a second or two."""
    return sft.SFTCommand(
        model=folder,
        data=str(written(tmp_path / "demos.jsonl", rows())),
        data_dir=tmp_path / "data",
        device="cpu",
        dtype="float32",
        decode_format="float32",
        threads=1,
        epochs=3,
        chat={"reply_tokens": 12, "temperature": 1.0},
        sft={"lr": 1e-2},
        gate={"prompts": 8, "replies": 1, "canary_fall": 100.0, "length_drift": 8.0, "distinct_share": 0.1},
        _env_file=None,
    )


def fine_tuned(command, store):
    _, data = sft.learn_from(command, store)
    return sft.fine_tune(store, command, data)


def test_demonstrations_become_a_published_version_that_plain_peft_loads(command, folder, tmp_path):
    store = Store(command.database)
    votes = cast(store)
    assert store.new_votes() == 1
    sentence = fine_tuned(command, store)
    assert sentence.startswith("v1 is published (round 1): held-out loss ")
    live, row = store.live_policy(), store.round(1)
    assert (live["version"], row["state"]) == (1, "published")
    before, after = row["metrics"]["heldout_loss"]
    assert after < before - 0.5 and row["metrics"]["started_from"] == 0
    report = json.loads(live["gate_report"])
    assert report["demonstrations"] == 4 and report["gain"] == pytest.approx(before - after, abs=1e-3)
    assert store.new_votes() == 1 and votes, "votes that were there are still new"
    checks = gatewords.checks(report, row["config"], Words())
    assert all(check.passed for check in checks)
    assert checks[0].text.startswith("Better: 4 held-out demonstrations become likelier by +")
    assert phase_progress(row) == dict.fromkeys(("collect", "sft", "gate", "publish"), "done")
    assert "demonstrations of a file" in round_summary.summary_html({**row, "version": 1}, Words())

    manifest, tensors = adapter_reading.read(
        live["path"],
        base_hash=json.loads((command.adapters_dir / "v0001" / "manifest.json").read_text())["base"]["hash"],
    )
    for name, content in export.peft_files(manifest, tensors, "").items():
        (tmp_path / "peft").mkdir(exist_ok=True)
        (tmp_path / "peft" / name).write_bytes(content)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    _, data = sft.learn_from(command, store)
    demo = data.heldout[0]
    ids = torch.tensor([demo.prompt + demo.completion])

    def loss(model):
        with torch.no_grad():
            logprobs = model(ids).logits[0, len(demo.prompt) - 1 : -1].log_softmax(-1)
        return -logprobs[range(len(demo.completion)), demo.completion].mean().item()

    plain = loss(base)
    assert loss(PeftModel.from_pretrained(base, tmp_path / "peft")) < plain - 0.5


def test_a_second_file_goes_on_from_the_live_version(command, tmp_path):
    store = Store(command.database)
    fine_tuned(command, store)
    again = command.with_values(data=str(written(tmp_path / "more.jsonl", rows("Here are three things."))))
    assert "v2 is published" in fine_tuned(again, store)
    second = store.round(2)["metrics"]
    assert second["started_from"] == 1 and store.policy(2)["parent"] == 1
    other_rank = again.with_values(ppo={"lora_rank": 4})
    with pytest.raises(sft.NotPublished, match="LoRA of another rank"):
        fine_tuned(other_rank, store)


def test_what_the_gate_refuses_is_kept_and_said(command):
    store = Store(command.database)
    strict = command.with_values(gate={"kl_budget": 1e-6})
    with pytest.raises(sft.NotPublished, match="moved too far from the base"):
        fine_tuned(strict, store)
    assert store.live_policy()["version"] == 0 and store.policy(1)["status"] == "rejected"
    assert store.round(1)["state"] == "refused"


def test_what_cannot_be_learnt_makes_no_version(command):
    store = Store(command.database)
    with pytest.raises(sft.NotPublished, match="did not fall below"):
        fine_tuned(command.with_values(sft={"lr": 1e-30}), store)
    assert store.policies()[0]["version"] == 0
    seconds = store.round(1)["metrics"]["phase_seconds"]
    assert seconds["sft"] > 0.01, "the page said that a round which ended in its phase took no time"


def test_a_round_on_votes_keeps_it_out_and_an_abandoned_one_is_ended(command):
    store = Store(command.database)
    _, data = sft.learn_from(command, store)
    asked = store.request_round()
    with pytest.raises(Exception, match="Round 1 is requested"):
        sft.fine_tune(store, command, data)
    store.set_round_command(asked, "stop")
    left = store.take_fine_tuning("dead", "x", lease_seconds=30)
    quick = command.with_values(round={"lease_seconds": 0.2, "poll_seconds": 0.1})
    assert store.take_round("w", lease_seconds=30, auto_votes=1) is None, "a worker leaves it alone"
    assert "v1 is published" in sft.fine_tune(store, quick, data)
    assert store.round(left["id"])["reason"] == LEFT


def test_a_worker_ends_a_fine_tuning_whose_process_died(command):
    store = Store(command.database)
    store.take_fine_tuning("dead", "x", lease_seconds=30)
    quick = Settings.like(command, round={"lease_seconds": 0.001})
    assert worker.run_once(store, quick, "w") is None  # sees its beat for the first time
    row = worker.run_once(store, quick, "w")
    assert (row["state"], row["reason"]) == ("failed", LEFT)


@pytest.mark.parametrize(
    ("phase", "english", "chinese"),
    [("collect", "reading the file", "读取文件"), ("sft", "fine-tuning on demonstrations", "用示范微调")],
)
def test_the_page_says_that_it_is_on_a_file(phase, english, chinese):
    """It said that votes are read, and that it warms up on edited replies."""
    row = {"phase": phase, "state": "running", "wish": None, "metrics": {"sft_file": "x"}}
    assert (phase_text(row, Words()), phase_text(row, Words(CHINESE))) == (english, chinese)
    assert phase_text({**row, "metrics": {}}, Words()) != english


def test_a_fine_tuning_in_a_restored_database_is_ended_and_not_run_on_votes(command):
    """The restore forgot that the round was on a file, so a worker trained on votes that it did not count as used."""
    store = Store(command.database)
    row = store.take_fine_tuning("dead", "x", lease_seconds=30)
    store.update_round(row["id"], "dead", {"demonstrations": 3}, phase="gate")
    store.restart_running_round()
    assert store.round(row["id"])["metrics"] == {"sft_file": "x"}
    quick = Settings.like(command, round={"lease_seconds": 0.001})
    ended = worker.run_once(store, quick, "w") or worker.run_once(store, quick, "w")
    assert (ended["state"], ended["reason"]) == ("failed", LEFT)


def test_a_round_that_is_run_once_comes_after_a_fine_tuning(command, capsys):
    """`--once` took the fine-tuning for the round that it had asked for, and ended with its exit code."""
    store = Store(command.database)
    left = store.take_fine_tuning("dead", "x", lease_seconds=30)
    quick = Settings.like(command, round={"lease_seconds": 0.001, "poll_seconds": 0.01})
    assert worker.wait_for_round(store, quick, "w") == 4, "there are no votes"
    assert store.round(left["id"])["state"] == "failed" and "Round 2: not_enough" in capsys.readouterr().out


# -- the file


def test_what_this_database_recorded_is_learnt_by_its_rounds_and_not_from_a_file(command, tmp_path, capsys):
    """What somebody deleted would come back by a file that was exported before."""
    store = Store(command.database)
    duel = cast(store)
    vote = store.rows("select id, created from vote")[0]
    marks = {"vote": vote["id"], "created": vote["created"], "chosen": REPLY, "rejected": "no"}
    ours = {"prompt": "Hello", **marks}
    theirs = {"prompt": "Hello", **marks, "created": "2020-01-01T00:00:00.000Z"}
    for row, left_out in ((ours, 1), (theirs, 0)):
        path = written(tmp_path / "exported.jsonl", [*rows(), row])
        found, _ = sft.learn_from(command.with_values(data=str(path)), store)
        assert found.bad == left_out and duel
    assert "row 21 is left out: this database recorded it" in capsys.readouterr().err


def test_training_ends_where_the_held_out_loss_rises_and_keeps_the_best(command, folder):
    settings = Settings.like(command, sft={"epochs": 50, "lr": 3e-2})
    policy = sft_train.PolicyModel(loading.load_trunk(settings), settings)
    train, heldout = [Episode([5, 6], [20, 21, 2], True)], [Episode([5, 6], [30, 31, 2], True)]
    looks = sft_train.train_until_heldout_rises(policy, train, heldout, settings, seconds=60)
    best = min(looks, key=lambda look: look.heldout)
    assert len(looks) < 50 and looks[-sft_train.PATIENCE - 1] == best
    assert sft_train.losses(policy, heldout, settings) == pytest.approx([best.heldout], abs=1e-5)
    assert len(sft_train.train_until_heldout_rises(policy, train, train, settings, seconds=0)) == 2


def test_bad_rows_are_named_and_the_good_ones_learnt(command, tmp_path, capsys):
    pair = {"prompt": "What is good?", "chosen": "Tea.", "rejected": "Nothing."}
    tie = {"messages": [{"role": "user", "content": "Hi"}], "left": "a", "right": "b", "choice": "tie"}
    odd = [pair, {"prompt": "No reply"}, tie, {"prompt": "x", "completion": " "}, rows()[0], "{not json"]
    path = tmp_path / "odd.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in [*rows(), *odd]))
    found, data = sft.learn_from(command.with_values(data=str(path)), None)
    said = capsys.readouterr()
    assert (found.rows, found.bad, found.repeated, len(found.episodes)) == (26, 4, 1, 21)
    assert "row 22 is left out: there is no reply to learn" in said.err
    assert "row 23 is left out: neither reply of the pair is better" in said.err
    assert "row 26 is left out: the row is not JSON" in said.err
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(found.episodes[-1].completion).startswith("Tea.")
    held = {tuple(episode.prompt) for episode in data.heldout}
    assert len(held) == 4 and not held & {tuple(episode.prompt) for episode in data.train}


def test_csv_is_read_too_and_rows_beyond_the_limit_are_not(command, tmp_path, capsys):
    path = tmp_path / "demos.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["instruction", "output"])
        writer.writeheader()
        writer.writerows({"instruction": row["prompt"], "output": row["completion"]} for row in rows())
    found, _ = sft.learn_from(command.with_values(data=str(path), max_rows=12), None)
    assert len(found.episodes) == 12 and found.left_over
    assert "the rows after the first 12" in capsys.readouterr().err


def test_demonstrations_are_read_from_the_hub_too(command, monkeypatch, capsys):
    with fake_hub.serving(monkeypatch) as hub:
        hub.add("ann/demos", files={"train.jsonl": "".join(json.dumps(row) + "\n" for row in rows()).encode()})
        found, _ = sft.learn_from(command.with_values(data="hf://datasets/ann/demos"), None)
    assert len(found.episodes) == 20 and "hf://datasets/ann/demos: 20 rows read" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("few.jsonl", json.dumps(rows()[0]) + "\n", "demonstrations of 1 different dialogues"),
        ("empty.jsonl", "", "demonstrations of 0 different dialogues"),
        ("odd.pdf", "x", "the name ends in none of"),
        (None, None, "there is no such file"),
    ],
)
def test_a_file_that_holds_nothing_to_learn_is_refused_with_exit_code_1(folder, tmp_path, capsys, name, content, says):
    path = tmp_path / (name or "missing.jsonl")
    if content is not None:
        path.write_text(content)
    Store(tmp_path / "data" / "nudge.db").close()
    argv = ["--data", str(path), "--model", folder, "--data-dir", str(tmp_path / "data")]
    assert sft.main(argv) == 1
    assert says in capsys.readouterr().err


def test_a_dry_run_shows_what_would_be_learnt_and_makes_no_database(command, folder, capsys):
    argv = ["--data", str(command.data), "--model", folder, "--data-dir", str(command.data_dir), "--dry-run"]
    assert sft.main(argv) == 0
    said = capsys.readouterr().out
    assert "It would learn 16 demonstrations" in said and "hold out 4" in said
    assert "How do I boil an egg?" in said and REPLY in said
    assert not command.database.exists()


def test_without_a_database_it_says_so_and_makes_none(command, folder, capsys):
    """A wrong --data-dir got a new database, and a version that no app would answer with."""
    argv = ["--data", str(command.data), "--model", folder, "--data-dir", str(command.data_dir)]
    assert sft.main(argv) == 1 and "There is no database" in capsys.readouterr().err
    assert not command.database.exists()


def reading(*chats):
    """What `read` finds in rows with these chats: each a text of the user's messages, apart by blanks."""
    found = sft_data.Reading()
    for n, chat in enumerate(chats):
        turns = [{"role": "user", "content": text} for text in chat.split()]
        found.episodes.append(Episode([n], [3, n], True))
        found.places.append(sft_data.place_of(turns))
    return found


def test_rows_of_one_dialogue_are_on_one_side_of_the_split():
    """A dialogue of five rows was learnt from in four, and the fifth was held out as if it were new."""
    found = reading(*(f"{name} b c d e"[: 2 * n + 1] for name in "ABCDEFGHIJKL" for n in range(5)), "x A", "x A y")
    first = sft_data.dialogues(found.places)
    assert len(set(first)) == 13 and len(set(first[:5])) == 1 and first[-1] == first[-2] != first[0]
    settings = Settings(_env_file=None, preferences={"heldout_fraction": 0.3})
    data = sft_data.split(found, settings)
    group_of = {episode.prompt[0]: dialogue for episode, dialogue in zip(found.episodes, first, strict=True)}
    held = [group_of[episode.prompt[0]] for episode in data.heldout]
    assert len(held) == len(set(held)) == 4, "one row of each"
    assert not set(held) & {group_of[episode.prompt[0]] for episode in data.train}
    assert len(data.train) == sum(first.count(dialogue) for dialogue in set(first) - set(held))


def test_one_prompt_of_two_dialogues_is_not_on_both_sides():
    """Two long chats can be cut to the same prompt."""
    found = reading(*"ABCDEFGHIJKL")
    for episode in found.episodes[1:]:
        episode.prompt[:] = [99]
    data = sft_data.split(found, Settings(_env_file=None))
    held = {tuple(episode.prompt) for episode in data.heldout}
    assert (99,) in held and not held & {tuple(episode.prompt) for episode in data.train}


def test_prompts_that_are_all_cut_to_one_leave_nothing_to_train_on():
    """It was a traceback of `--dry-run`, and a round of no steps."""
    found = reading(*"ABCDEFGHIJ")
    for episode in found.episodes:
        episode.prompt = [1, 2]
    with pytest.raises(sft_data.CannotLearn, match="Nothing is left to train on"):
        sft_data.split(found, Settings(_env_file=None))


def test_too_few_dialogues_cannot_be_split():
    with pytest.raises(CannotLearn, match="9 different dialogues"):
        sft_data.split(reading(*"AAABCDEFGHI"), SimpleNamespace())
