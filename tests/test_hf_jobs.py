"""Rounds as jobs of Hugging Face: sent, followed, taken up again, taken over or refused. The hub is a fake, the client
is the real one, and the job really trains, in a process of its own.
"""

import json
import socket
import sqlite3
from contextlib import closing
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from playground.backup.target import Target
from playground.models import loading
from playground.settings import Settings, SettingsError, jobs
from playground.store import STOPPED, Store, snapshots
from playground.ui.place import place_html
from playground.ui.words import Words
from tests import fake_jobs
from tests.fake_jobs import FakeHub
from tests.stores import candidate, cast, take
from tests.test_loop import liking, planted_folder, settings_for
from training import hf_jobs, job_control, job_files, job_round, simulate
from training.annotators import Person
from training.hf_jobs import HFJobs, HubUnavailable
from training.job_control import SentJob
from training.job_files import Progress, Result
from training.job_round import JobRound
from training.worker import run_once

NOT_ENOUGH = {"template": "Not enough evidence yet. Votes so far: {n}; vote on more replies.", "values": {"n": 1}}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # the hub is on this machine
    monkeypatch.setattr(job_control, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(job_control, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(job_round, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(job_round, "LANDING_SECONDS", 0.3)
    # not in the real environment: what a test starts is on no Space
    monkeypatch.setattr(hf_jobs, "os", SimpleNamespace(environ={"SPACE_ID": "owner/nudge"}))
    monkeypatch.setattr(hf_jobs.hub, "token", lambda: "hf_test")


@pytest.fixture
def hub():
    hub = FakeHub()
    yield hub
    hub.close()


def elsewhere(folder):
    return {
        "train_on": "hf-job:t4-small",
        "backup": {"url": (folder / "bucket").as_uri()},
        "round": {"lease_seconds": 5.0, "poll_seconds": 0.05},
    }


def run(store, settings, hub, kind=JobRound):
    store.request_round()
    return run_once(store, settings, "w", kind=partial(kind, hub=HFJobs("owner", hub.api)))


# -- jobs that train


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """Settings whose store holds 30 votes on the tiny model's replies."""
    folder = tmp_path_factory.mktemp("voted")
    settings = settings_for(
        folder,
        **elsewhere(folder),
        ppo={"iterations": 2, "episodes": 16, "minibatch": 8, "kl_target": 1e9},
        gate={"better": 0.01, "not_worse": 0.01, "prompts": 8, "replies": 1},
        reward={"evidence_confidence": 0, "features": "layers"},
    )
    store = Store(settings.database)
    simulate.make_duels(
        store,
        simulate.SimulateSettings.like(settings, votes=30),
        loading.load_trunk(settings),
        loading.load_tokenizer(settings),
        {"liking": Person(lambda prompt, reply: liking(reply))},
        log=lambda text: None,
    )
    return settings, store


def test_a_round_is_published_and_the_next_is_judged_here_where_another_version_answers_by_now(voted, hub, tmp_path):
    settings, store = voted
    bucket = Target(settings.backup.url)

    def kept(job):
        """A job whose result is kept for the last part of this test."""
        end, job.end = job.end, lambda *how: None
        fake_jobs.program(job)
        job_files.receive(bucket, job.arguments["--key"], "result", tmp_path / "kept", 1)
        end("COMPLETED")

    hub.runs = iter([kept])
    row = run(store, settings, hub)
    assert row["state"] == "published", (row["reason"], hub.jobs[0].lines)
    spec = hub.jobs[0].spec
    uv = ["uv", "run", "--no-project", "--python", "3.12", "--with-requirements", "/nudge/requirements.txt"]
    assert spec["command"][:11] == [*uv, "python", "-m", "training.job", "--round-id"]
    files = {"type": "space", "source": "owner/nudge", "mountPath": "/nudge", "revision": "c0ffee", "readOnly": True}
    assert (spec["volumes"], spec["flavor"], spec["timeoutSeconds"]) == ([files], "t4-small", 7200)
    assert spec["secrets"] == {"HF_TOKEN": "hf_test"} and "hf_test" not in str([spec["environment"], spec["command"]])
    metrics = row["metrics"]
    assert (store.live_policy()["version"], metrics["started_from"]) == (1, 0)
    assert [step for step, _ in store.metrics(row["id"])["reward"]] == [1, 2]
    assert len(store.used_votes(row["id"])) == metrics["votes"] > 0
    assert metrics["job"]["usd_per_minute"] == 0.006667 and "ppo" in metrics["phase_seconds"]
    assert place_html(row, Words(), False).startswith(
        '<p class="place">This round trained on a machine of Hugging Face (t4-small). Minutes so far: '
    )
    assert hub.jobs[0].id in place_html(row, Words(), True), "admins see the address of the job"
    folder = settings.rounds_dir / f"{row['id']:04d}"
    assert "ppo 2 of 2" in (folder / "log.txt").read_text(), "the job's log is the round's"
    assert not (folder / "served.json").exists() and not (folder / "reward.safetensors").exists()
    assert json.loads((folder / "gate.json").read_text())["served_kl"] == metrics["served_kl"]
    assert nothing_is_left(settings)

    def rolled_back_meanwhile(job):
        store.roll_back(0)
        fake_jobs.program(job)

    hub.runs = iter([rolled_back_meanwhile])
    second = run(store, settings, hub)
    assert second["state"] == "published", (second["reason"], hub.jobs[1].lines)
    assert second["metrics"]["started_from"] == 1, "the job got the version that answered then"
    assert store.policy(2)["parent"] == 0 and nothing_is_left(settings)

    def no_number(job):
        """A job that sends the result of the first one with a value that is no number, and with right hashes."""
        folder = tmp_path / "kept" / "rounds" / "0001"
        policy = load_file(folder / "policy.safetensors")
        next(iter(policy.values()))[0, 0] = float("nan")
        save_file(policy, folder / "policy.safetensors")
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**result, "live": 2}))
        files = {f"rounds/0003/{file.name}": file for file in folder.iterdir()}
        job_files.send(bucket, job.arguments["--key"], "result", files)
        job.end("COMPLETED")

    hub.runs = iter([no_number])
    third = run(store, settings, hub)
    assert third["state"] == "failed" and "BadAdapter in phase publish" in str(third["reason"]), third["reason"]
    assert store.live_policy()["version"] == 2


def nothing_is_left(settings):
    bucket = Target(settings.backup.url)
    return not bucket.files.exists(f"{bucket.root}/jobs") and not (settings.data_dir / ".job.partial").exists()


# -- jobs that end otherwise


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return planted_folder(tmp_path_factory.mktemp("planted") / "model")


@pytest.fixture
def asked(tmp_path, model):
    """Settings and a store with two votes."""
    settings = Settings(
        _env_file=None, model=str(model), data_dir=tmp_path / "data", device="cpu", threads=1, **elsewhere(tmp_path)
    )
    store = Store(settings.database)
    cast(store, "a", store.annotator("ann"))
    cast(store, "b", store.annotator("bob"))
    return settings, store


def sends(settings, folder, edit=lambda bucket: None, **files):
    """A job that sends a result: by default that there was not enough evidence."""

    def job_sends(job):
        key, round_id = job.arguments["--key"], int(job.arguments["--round-id"])
        progress = {"phase": "collect", "step": 0, "steps": 0, "metrics": {"votes": 2, "job": 1}, "curves": {}}
        ended = {"state": "not_enough", "reason": NOT_ENOUGH, "live": 0, "base": "", "votes": [(1, True)]}
        own = folder / "sent"
        own.mkdir()
        (own / "result.json").write_text(Result(**progress, **ended).model_dump_json())
        for name, content in files.items():
            (own / name.replace("__", ".")).write_text(content)
        bucket = Target(settings.backup.url)
        job_files.send(bucket, key, "result", {f"rounds/{round_id:04d}/{file.name}": file for file in own.iterdir()})
        edit(folder / "bucket" / "jobs" / key / "result")
        job.end("COMPLETED")

    return job_sends


def waits(job):
    job.cancelled.wait(60)


def test_not_enough_evidence_is_told_with_what_the_job_found(asked, hub, tmp_path):
    settings, store = asked
    hub.runs = iter([sends(settings, tmp_path)])
    row = run(store, settings, hub)
    assert (row["state"], row["reason"].values) == ("not_enough", {"n": 1})
    assert (row["metrics"]["votes"], store.used_votes(row["id"])) == (2, [(1, True)])
    assert row["metrics"]["job"]["id"] == hub.jobs[0].id, "a job does not say which job it is"


def flip(result):
    blob = next((result / "blobs").iterdir())
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")


def tear(result):
    manifest = next((result / "snapshots").iterdir())
    manifest.write_bytes(manifest.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("files", "edit", "says"),
    [
        ({}, flip, "a part is not what it was"),
        ({}, tear, "its manifest is torn or was altered"),
        ({"adapter__safetensors": "x"}, None, "adapter.safetensors of 1 bytes is nothing that a job returns"),
        ({"result__json": "{}"}, None, "result.json: phase: Field required"),
    ],
)
def test_a_result_that_is_not_what_a_job_sends_is_a_failed_round(asked, hub, tmp_path, files, edit, says):
    settings, store = asked
    hub.runs = iter([sends(settings, tmp_path, edit or (lambda result: None), **files)])
    row = run(store, settings, hub)
    assert row["state"] == "failed" and says in str(row["reason"]), row["reason"]
    assert store.policies()[0]["version"] == 0 and nothing_is_left(settings)


def test_a_job_that_breaks_is_a_failed_round_with_the_end_of_its_log(asked, hub):
    settings, store = asked

    def breaks(job):
        job.lines += [f"line {number} " + "x" * 500 for number in range(100)]
        job.end("ERROR", "Job failed with exit code: 1")

    hub.runs = iter([breaks])
    reason = str(run(store, settings, hub)["reason"])
    assert reason.startswith("JobFailed in phase collect: The job ended by itself. Job failed with exit code: 1")
    assert "line 99 x" in reason and "line 50 x" not in reason and len(reason) < 2500


def test_a_job_that_cannot_begin_says_why(asked, hub):
    """The program itself: it finds no files."""
    settings, store = asked

    def begins(job):
        bucket = Target(settings.backup.url)
        job_files.clear(bucket)
        fake_jobs.program(job)

    hub.runs = iter([begins])
    row = run(store, settings, hub)
    assert row["state"] == "failed" and "There is no job 0001-" in str(row["reason"])


def test_a_job_whose_files_never_come_is_a_failed_round(asked, hub):
    settings, store = asked
    hub.runs = iter([lambda job: job.end("COMPLETED")])
    assert "its result has not come" in str(run(store, settings, hub)["reason"])


def test_a_job_that_takes_too_long_is_cancelled(asked, hub, monkeypatch):
    settings, store = asked
    late = {"seconds": 0}

    def slow(job):
        late["seconds"] = 60 * settings.job.minutes + 1
        waits(job)

    monkeypatch.setattr(
        job_control,
        "time",
        SimpleNamespace(
            time=lambda: job_round.time.time() + late["seconds"],
            monotonic=job_round.time.monotonic,
            sleep=job_round.time.sleep,
        ),
    )
    hub.runs = iter([slow])
    row = run(store, settings, hub)
    assert "more than the 120 minutes" in str(row["reason"])
    assert hub.jobs[0].stage == "CANCELED" and nothing_is_left(settings)


def test_a_stopped_round_cancels_its_job(asked, hub):
    settings, store = asked

    def stopped(job):
        store.set_round_command(1, "stop")
        waits(job)

    hub.runs = iter([stopped])
    row = run(store, settings, hub)
    assert (row["state"], row["reason"], hub.jobs[0].stage) == ("failed", STOPPED, "CANCELED")


class Leaves(JobRound):
    """A round whose worker ends while it waits for the job."""

    def wait(self, seconds):
        raise SystemExit


class LeavesEarlier(Leaves):
    """A round whose worker ends after the job has started and before its id is written down."""

    def start(self):
        self._remember = self.wait
        super().start()


@pytest.mark.parametrize("kind", [Leaves, LeavesEarlier])
def test_a_worker_takes_up_the_job_of_the_one_before_it_also_after_a_restore(asked, hub, tmp_path, kind):
    settings, store = asked
    hub.runs = iter([waits])
    with pytest.raises(SystemExit):
        run(store, settings, hub, kind)
    store.restart_running_round()  # as after a sleep of the Space
    job = hub.jobs[0]
    assert job.stage == "RUNNING" and store.last_round()["phase"] == "collect"
    sends(settings, tmp_path)(job)
    row = run(store, settings, hub)
    assert row["state"] == "not_enough" and len(hub.jobs) == 1


def test_what_is_taken_back_meanwhile_sends_the_round_again_without_it_and_not_for_ever(asked, hub):
    settings, store = asked
    copies = []

    def taken_back(job):
        copies.append(texts_of(settings, job))
        person = store.annotator(["ann", "bob", "cid"][len(copies) - 1])
        cast(store, "a", store.annotator("cid")) if len(copies) == 1 else None
        store.allow_training(person, False)
        waits(job)

    hub.runs = iter([taken_back] * 3)
    row = run(store, settings, hub)
    assert [job.stage for job in hub.jobs] == ["CANCELED"] * 3 and nothing_is_left(settings)
    assert [len(texts) for texts in copies] == [6, 6, 3]
    assert "Each of its jobs had read a chat that was taken back meanwhile." in str(row["reason"])


def texts_of(settings, job):
    folder = settings.data_dir / f"copy of {job.id}"
    key = job.arguments["--key"]
    job_files.receive(Target(settings.backup.url), key, "inputs", folder, 1)
    with closing(sqlite3.connect(folder / "nudge.db")) as copy:
        return [text for (text,) in copy.execute("select text from message where text != ''")]


def test_a_hub_that_does_not_answer_is_asked_again_and_one_that_refuses_ends_the_round(asked, hub, tmp_path):
    settings, store = asked

    def nobody_answers(job):
        hub.answers = [503, 500, 429]
        sends(settings, tmp_path)(job)

    hub.runs = iter([nobody_answers])
    assert run(store, settings, hub)["state"] == "not_enough"
    hub.answers = [402]
    row = run(store, settings, hub)
    assert row["state"] == "failed" and "Hugging Face refuses the job (402): Payment Required" in str(row["reason"])


def test_a_finished_job_is_taken_over_after_a_long_sleep_although_the_hub_does_not_answer_at_once(asked, hub, tmp_path):
    settings, store = asked
    hub.runs = iter([waits])
    with pytest.raises(SystemExit):
        run(store, settings, hub, Leaves)
    with store.writing() as db:
        db.execute("update round set metrics = json_set(metrics, '$.job.sent', 0.0)")
    sends(settings, tmp_path)(hub.jobs[0])
    hub.answers = [503, 503]
    assert run(store, settings, hub)["state"] == "not_enough"


def test_a_round_that_has_begun_here_begins_again_when_it_is_sent(asked, hub, tmp_path):
    settings, store = asked
    store.request_round()
    row = store.take_round("w", lease_seconds=1)
    store.update_round(row["id"], "w", phase="ppo", metrics={"started_from": 0})
    seen = []

    def looks(job):
        job_files.receive(Target(settings.backup.url), job.arguments["--key"], "inputs", tmp_path / "copy", row["id"])
        with closing(sqlite3.connect(tmp_path / "copy" / "nudge.db")) as copy:
            seen.append(copy.execute("select phase from round").fetchone()[0])
        sends(settings, tmp_path)(job)

    hub.runs = iter([looks])
    assert run_once(store, settings, "w", kind=partial(JobRound, hub=HFJobs("owner", hub.api)))["state"] == "not_enough"
    assert seen == ["collect"]


def test_what_an_ended_round_left_in_the_bucket_goes_and_what_a_job_needs_stays(asked, hub):
    settings, store = asked
    hub.runs = iter([waits])
    with pytest.raises(SystemExit):
        run(store, settings, hub, Leaves)
    job_control.tidy(store, settings)
    assert not nothing_is_left(settings)
    row = store.take_round("w", lease_seconds=1)
    store.end_round(row["id"], "w", "failed")  # as if the worker had been killed then
    job_control.tidy(store, settings)
    assert nothing_is_left(settings)


def test_a_server_that_trains_here_again_cancels_the_job(asked, hub, monkeypatch):
    settings, store = asked
    hub.runs = iter([waits])
    with pytest.raises(SystemExit):
        run(store, settings, hub, Leaves)
    monkeypatch.setattr(job_round, "HFJobs", lambda namespace: HFJobs("owner", hub.api))
    row = run_once(store, settings.with_values(train_on="here"), "w")
    assert hub.jobs[0].stage == "CANCELED"
    assert row["state"] == "not_enough" and not row["metrics"]["job"] and nothing_is_left(settings)


@pytest.mark.parametrize(
    ("state", "changes", "says"),
    [
        ("running", {"stage": "waiting"}, "waits for a machine of Hugging Face (l4x1)"),
        (
            "running",
            {"stage": "waiting", "usd_per_minute": 0.013333, "minutes": 120},
            "waits for a machine of Hugging Face (l4x1). It costs about $0.0133 a minute, at most $1.60 in 120 minutes",
        ),
        (
            "running",
            {"stage": "waiting", "usd_per_minute": 0.02},
            "waits for a machine of Hugging Face (l4x1). It costs about $0.02 a minute",
        ),
        (
            "running",
            {"usd_per_minute": 0.02},
            "trains on a machine of Hugging Face (l4x1). Minutes so far: 3, about $0.06",
        ),
        ("failed", {}, "trained on a machine of Hugging Face (l4x1). Minutes so far: 3"),
    ],
)
def test_the_page_says_where_a_round_trains_and_about_what_that_costs(state, changes, says):
    job = asdict(SentJob("key", "l4x1", 0.0, "id", stage="running", seconds=180.0))
    row = {"state": state, "wish": None, "owner": "w", "metrics": {"job": {**job, **changes}}}
    assert place_html(row, Words(), False) == f'<p class="place">This round {says}.</p>'


@pytest.mark.parametrize(
    "figures",
    [
        {"phase_began": "x"},
        {"part": [1]},
        {"step_seconds": "x"},
        {"phase_seconds": None},
        {"phase_seconds": {"ppo": float("nan")}},
    ],
)
def test_figures_of_a_job_that_no_page_could_show_are_none(figures):
    """The page of everybody broke at them."""
    said = {"phase": "ppo", "step": 1, "steps": 2, "metrics": {"kl": 1.0}, "curves": {}}
    assert Progress.model_validate(said).metrics == {"kl": 1.0}
    with pytest.raises(ValidationError):
        Progress.model_validate({**said, "metrics": figures})


def test_a_pause_leaves_when_the_phase_of_a_job_began(asked):
    """The time left was counted from when the worker had taken the round."""
    settings, store = asked
    store.request_round()
    row = store.take_round("w", lease_seconds=1)
    control = JobRound(store, settings, row, "w")
    store.update_round(row["id"], "w", metrics={"phase_began": 5.0, "paused": True})
    control.goes_on(60.0)
    metrics = store.last_round()["metrics"]
    assert metrics["phase_began"] == 5.0 and metrics["paused"] is False


def test_a_pause_holds_the_space_and_not_the_job_and_the_page_says_so():
    job = asdict(SentJob("key", "l4x1", 0.0, "id", stage="running", seconds=180.0))
    row = {"state": "running", "wish": "pause", "owner": "w", "metrics": {"job": job, "paused": True}}
    assert "The job goes on during the pause." in place_html(row, Words(), False)


# -- what a job gets


def test_the_copy_has_what_a_round_reads_and_no_secret(asked, tmp_path):
    settings, store = asked
    ann, private = store.annotator("ann"), store.annotator("private")
    word = "somebodys-secret"
    store.sign_in(ann, word, 1e10)
    store.add_key(word, "a key")
    store.begin_sign_in(word, "a cookie", "a stamp", 1.0)
    store.override({"ppo.lr": 1e-4}, ann)
    store.explain(1, ann, ["clear"], word)
    store.share(1, ann)
    store.start_duel(store.new_conversation(ann), f"no vote on {word}", [7], [candidate(1), candidate(2)])
    store.start_duel(store.new_conversation(private), word, [8], [candidate(1), candidate(2)])
    cast(store, "a", private)
    store.allow_training(private, False)
    store.request_round()
    row = take(store)
    store.record_read_conversations(row["id"])
    assert word.encode() in bytes_of(store, tmp_path / "whole.db")

    store.copy_to(tmp_path / "copy.db")
    copy = Store(tmp_path / "copy.db")
    copy.keep_for_round(row["id"])
    base = copy.last_base_hash()
    assert copy.votes_for_training(base) == store.votes_for_training(base) != []
    assert copy.round(row["id"]) == row and copy.unfinished_erasures() == []
    assert word.encode() not in bytes_of(copy, tmp_path / "kept.db")
    with closing(sqlite3.connect(tmp_path / "kept.db")) as kept:
        tables = [name for (name,) in kept.execute("select name from sqlite_master where type = 'table'")]
        empty = {name for name in tables if not kept.execute(f"select count(*) from {name}").fetchone()[0]}
        assert empty >= set(snapshots.NOT_FOR_ROUNDS)
        columns = "token_hash, name, account, signed_in_until"
        assert set(kept.execute(f"select {columns} from annotator")) == {(None,) * 4}
        assert not kept.execute("pragma foreign_key_check").fetchall()


def bytes_of(store, path):
    store.copy_to(path)
    return path.read_bytes()


# -- the start


@pytest.mark.parametrize(
    ("settings", "environ", "says"),
    [
        ({}, {}, "needs backup.url"),
        ({"backup": {"url": "file:///mnt/backup"}}, {}, "is no bucket of Hugging Face"),
        ({"backup": {"url": "s3://bucket/nudge"}}, {}, "is no bucket of Hugging Face"),
        ({"backup": {"url": "hf://buckets/o/n"}}, {"SPACE_ID": "o/n"}, "needs HF_TOKEN"),
        ({"backup": {"url": "hf://buckets/o/n"}}, {"HF_TOKEN": "hf"}, "job.image"),
        ({"backup": {"url": "hf://buckets/o/n"}, "model": "."}, {"HF_TOKEN": "hf", "SPACE_ID": "o/n"}, "its id on"),
    ],
)
def test_a_start_without_what_a_job_needs_says_what_is_missing(settings, environ, says):
    given = Settings(_env_file=None, train_on="hf-job:t4-small", **settings)
    with pytest.raises(SettingsError, match=says):
        jobs.check(given, environ)


def test_a_start_with_all_that_a_job_needs_goes_on():
    bucket = {"url": "hf://buckets/o/n"}
    jobs.check(Settings(_env_file=None), {})
    jobs.check(Settings(_env_file=None, train_on="hf-job:l4x1", backup=bucket), {"HF_TOKEN": "hf", "SPACE_ID": "o/n"})
    jobs.check(Settings(_env_file=None, train_on="hf-job:l4x1", backup=bucket, job={"image": "i"}), {"HF_TOKEN": "hf"})


def test_a_flavour_is_a_name():
    with pytest.raises(Exception, match="train_on"):
        Settings(_env_file=None, train_on="hf-job:; rm")


def test_a_hub_that_cannot_be_reached_is_asked_again():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = HfApi(endpoint=f"http://127.0.0.1:{unused.getsockname()[1]}", token="hf_test")
    with pytest.raises(HubUnavailable):
        HFJobs("owner", nobody).look("an-id")
