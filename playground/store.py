"""Store: owns the SQLite file, and is the only module that speaks SQL.

One connection a thread; WAL with `synchronous=FULL`, so that a vote that was shown as accepted is on disk; every write takes the write
lock first (`begin immediate`), because a deferred transaction that reads and then writes fails at once when another process wrote in between.
Nothing is overwritten: a replaced vote is superseded, a retired policy stays. What rows mean to a chat is `session.py`'s; to a round, `round.py`'s.
"""

import hashlib
import json
import sqlite3
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timezone

import sqlite_utils
from filelock import FileLock
from sqlite_utils.db import NotFoundError

from playground.migrations import migrations

CHOICES = ("a", "b", "tie", "both_bad", "skip")


class StoreError(Exception):
    """The store refuses what was asked; the message says why."""


class LeaseLost(StoreError):
    """Another worker has taken the round over."""


def now():
    """This moment in UTC, ISO 8601 with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Store:
    """The database at `path` (`:memory:` for tests), migrated to the newest schema when it is opened."""

    def __init__(self, path=":memory:"):
        self.path = str(path)
        self._local = threading.local()
        self._shared = None
        if self.path == ":memory:":
            self._shared, self._lock = self._connect(), threading.RLock()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = None
            # SQLite's busy timeout does not cover the switch to WAL, and server and worker may open a new file at the same moment
            with FileLock(f"{self.path}.lock", timeout=60):
                self.db.execute("pragma journal_mode=wal")
        with self.writing() as db:
            migrations.apply(db)

    @property
    def db(self):
        if self._shared is not None:
            return self._shared
        if not hasattr(self._local, "db"):
            self._local.db = self._connect()
        return self._local.db

    def _connect(self):
        memory = self.path == ":memory:"
        connection = sqlite3.connect(self.path, timeout=15, isolation_level=None, check_same_thread=not memory)
        for pragma in ("foreign_keys=on", "busy_timeout=15000", "synchronous=full"):
            connection.execute(f"pragma {pragma}")
        return sqlite_utils.Database(connection)

    @contextmanager
    def writing(self):
        """One transaction that holds the write lock from its start; an exception rolls it back."""
        if self._lock:
            self._lock.acquire()
        try:
            self.db.execute("begin immediate")
            try:
                yield self.db
            except BaseException:
                self.db.execute("rollback")
                raise
            self.db.execute("commit")
        finally:
            if self._lock:
                self._lock.release()

    def rows(self, sql, *values):
        """Rows of a query as a list of dicts."""
        if self._lock:
            with self._lock:
                return list(self.db.query(sql, list(values)))
        return list(self.db.query(sql, list(values)))

    def row(self, sql, *values):
        """The first row of a query, or None."""
        return next(iter(self.rows(sql, *values)), None)

    def sqlite_version(self):
        return self.row("select sqlite_version() as version")["version"]

    # -- people and conversations

    def annotator(self, token, kind="anonymous"):
        """The annotator whose cookie is `token`, made on the first visit."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        found = self.row("select id from annotator where token_hash = ?", digest)
        if found:
            return found["id"]
        with self.writing() as db:
            db.execute("insert or ignore into annotator (token_hash, kind, created) values (?, ?, ?)", [digest, kind, now()])
        return self.row("select id from annotator where token_hash = ?", digest)["id"]

    def new_conversation(self, annotator, system_prompt=None):
        with self.writing() as db:
            return db["conversation"].insert(
                {"annotator": annotator, "system_prompt": system_prompt, "created": now()}).last_pk

    def conversation(self, annotator):
        """The annotator's newest conversation that was not deleted, or None."""
        return self.row("select * from conversation where annotator = ? and deleted is null order by id desc limit 1", annotator)

    def history(self, conversation):
        """Messages from the first to the conversation's tail: rows with id, role, text."""
        return self.rows(
            """with recursive path(id, parent, role, text, depth) as (
                 select m.id, m.parent, m.role, m.text, 0 from message m join conversation c on c.tail = m.id where c.id = ?
                 union all select m.id, m.parent, m.role, m.text, depth + 1 from message m join path on m.id = path.parent)
               select id, role, text from path order by depth desc""", conversation)

    # -- duels

    def start_duel(self, conversation, text, prompt_ids, sides):
        """Record a turn before its first token: the user's message and two streaming candidates.

        `sides` holds the left and the right candidate's generation columns (policy, base_model, base_hash, template_hash,
        sampling, seed). Returns the duel's id.
        """
        with self.writing() as db:
            tail = db.execute("select tail from conversation where id = ?", [conversation]).fetchone()[0]
            user = self._message(db, conversation, tail, "user", text, "complete")
            generations = []
            for side in sides:
                message = self._message(db, conversation, user, "assistant", "", "streaming")
                row = {**side, "sampling": json.dumps(side["sampling"]), "message": message, "prompt": self._prompt(db, prompt_ids)}
                generations.append(db["generation"].insert(row).last_pk)
            return db["duel"].insert({
                "conversation": conversation, "user_message": user, "left_generation": generations[0],
                "right_generation": generations[1], "pairing": "same_policy", "probability": 1.0, "created": now()}).last_pk

    def finish_duel(self, duel, sides, *, pairing="same_policy", probability=1.0):
        """Record what both candidates became: dicts with text, seed, token_ids, logprobs, finish_reason, first_token_ms, total_ms; and how this pair
        was picked where there were more than two."""
        with self.writing() as db:
            row = db["duel"].get(duel)
            db["duel"].update(duel, {"pairing": pairing, "probability": probability})
            for generation, side in zip((row["left_generation"], row["right_generation"]), sides, strict=True):
                status = {"stopped": "stopped", "error": "error"}.get(side["finish_reason"], "complete")
                db["generation"].update(generation, {
                    "seed": side["seed"], "token_ids": json.dumps(side["token_ids"]), "logprobs": json.dumps([round(x, 5) for x in side["logprobs"]]),
                    "finish_reason": side["finish_reason"], "first_token_ms": side["first_token_ms"], "total_ms": side["total_ms"]})
                db["message"].update(db["generation"].get(generation)["message"], {"text": side["text"], "status": status})

    def fail_streaming(self):
        """After a restart: candidates that were still streaming are errors. Returns how many there were."""
        with self.writing() as db:
            return db.execute("update message set status = 'error' where status = 'streaming'").rowcount

    def duel(self, duel):
        """A duel as a dict with conversation, annotator, and `left` and `right` (message, text, status, policy, timings); None if unknown."""
        row = self.row(
            """select d.*, c.annotator, c.tail, m.text as user_text, m.parent from duel d
               join conversation c on c.id = d.conversation join message m on m.id = d.user_message where d.id = ?""", duel)
        if row:
            for side in ("left", "right"):
                row[side] = self.row(
                    """select g.id, g.message, m.text, m.status, g.policy, g.first_token_ms, g.total_ms, g.finish_reason,
                         coalesce(json_array_length(g.token_ids), 0) as tokens
                       from generation g join message m on m.id = g.message where g.id = ?""", row[f"{side}_generation"])
        return row

    def last_duel(self, conversation):
        """The newest duel of a conversation whose replies both have a text (see `duel`), or None."""
        row = self.row(
            """select d.id from duel d where d.conversation = ? and 2 = (
                 select count(*) from generation g join message m on m.id = g.message
                 where g.id in (d.left_generation, d.right_generation) and m.status != 'error')
               order by d.id desc limit 1""", conversation)
        return row and self.duel(row["id"])

    @staticmethod
    def _message(db, conversation, parent, role, text, status):
        return db["message"].insert({
            "conversation": conversation, "parent": parent, "role": role, "text": text, "status": status, "created": now()}).last_pk

    @staticmethod
    def _prompt(db, token_ids):
        text = json.dumps(list(token_ids), separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        db.execute("insert or ignore into prompt (sha256, token_ids) values (?, ?)", [digest, text])
        return db.execute("select id from prompt where sha256 = ?", [digest]).fetchone()[0]

    # -- votes, ratings, demonstrations

    def vote(self, duel, annotator, choice, continue_with, shown_at=None, dwell_ms=None):
        """Record a vote, superseding this person's earlier one on the same duel, and move the conversation on to `continue_with`.

        Returns the vote's id once it is on disk. StoreError when the conversation has already gone on past this duel.
        """
        if choice not in CHOICES:
            raise StoreError(f"A vote is one of {', '.join(CHOICES)}; got {choice!r}.")
        with self.writing() as db:
            later = db.execute(
                "select 1 from duel d join generation g on g.id in (d.left_generation, d.right_generation) "
                "join message m on m.parent = g.message where d.id = ?", [duel]).fetchone()
            if later:
                raise StoreError("The conversation has gone on since; this vote can no longer be changed.")
            earlier = db.execute(
                "select id from vote where duel = ? and annotator = ? and superseded_by is null", [duel, annotator]).fetchone()
            new = db.execute("select coalesce(max(id), 0) + 1 from vote").fetchone()[0]
            if earlier:
                db.execute("update vote set superseded_by = ? where id = ?", [new, earlier[0]])
            db["vote"].insert({
                "id": new, "duel": duel, "annotator": annotator, "choice": choice, "continued_with": continue_with,
                "shown_at": shown_at, "dwell_ms": dwell_ms, "created": now()})
            db.execute("update conversation set tail = ? where id = (select conversation from duel where id = ?)", [continue_with, duel])
            return new

    def current_vote(self, duel, annotator):
        return self.row("select * from vote where duel = ? and annotator = ? and superseded_by is null", duel, annotator)

    def rate(self, message, annotator, thumb):
        """A thumb up (1) or down (-1) on one message; it supersedes this person's earlier one."""
        with self.writing() as db:
            new = db["rating"].insert({"message": message, "annotator": annotator, "thumb": thumb, "created": now()}).last_pk
            db.execute("update rating set superseded_by = ? where message = ? and annotator = ? and superseded_by is null and id != ?",
                       [new, message, annotator, new])

    def demonstrate(self, message, annotator, after):
        """An edited reply: what the person would rather have read. Before and after are kept."""
        with self.writing() as db:
            before = db["message"].get(message)["text"]
            return db["demonstration"].insert(
                {"message": message, "annotator": annotator, "before": before, "after": after, "created": now()}).last_pk

    USABLE = "a.allow_training and not a.banned and c.deleted is null"

    def votes_for_training(self, base_hash):
        """Current votes of people who allow training on replies of this base model, oldest first: vote, annotator, conversation,
        choice, prompt and completion ids."""
        return self._decoded(self.rows(
            f"""select v.id as vote, v.annotator, d.conversation, d.id as duel, v.choice, p.token_ids as prompt,
                  l.token_ids as left_ids, r.token_ids as right_ids
                from vote v join duel d on d.id = v.duel join conversation c on c.id = d.conversation join annotator a on a.id = v.annotator
                join generation l on l.id = d.left_generation join generation r on r.id = d.right_generation join prompt p on p.id = l.prompt
                where v.superseded_by is null and v.choice != 'skip' and l.base_hash = ? and {self.USABLE}
                order by v.id""", base_hash))

    def ratings_for_training(self, base_hash):
        """Current thumbs, oldest first: annotator, conversation, thumb, prompt and completion ids."""
        return self._decoded(self.rows(
            f"""select t.annotator, m.conversation, t.thumb, p.token_ids as prompt, g.token_ids as completion
                from rating t join message m on m.id = t.message join conversation c on c.id = m.conversation
                join annotator a on a.id = t.annotator join generation g on g.message = m.id join prompt p on p.id = g.prompt
                where t.superseded_by is null and g.base_hash = ? and {self.USABLE} order by t.id""", base_hash))

    def demonstrations(self, base_hash):
        """Edited replies, oldest first: annotator, conversation, prompt ids, the completion ids before, and the text after."""
        return self._decoded(self.rows(
            f"""select x.annotator, m.conversation, x.after, p.token_ids as prompt, g.token_ids as completion
                from demonstration x join message m on m.id = x.message join conversation c on c.id = m.conversation
                join annotator a on a.id = x.annotator join generation g on g.message = m.id join prompt p on p.id = g.prompt
                where g.base_hash = ? and {self.USABLE} order by x.id""", base_hash))

    def last_base_hash(self):
        """The base model of the newest duel, or None."""
        row = self.row("select base_hash from generation order by id desc limit 1")
        return row and row["base_hash"]

    # -- forecasts: what the reward model said of a vote before it learned from it

    def votes_to_forecast(self, base_hash):
        """Ids of usable votes without a forecast."""
        done = {row["vote"] for row in self.rows("select vote from forecast")}
        return {v["vote"] for v in self.votes_for_training(base_hash)} - done

    def add_forecasts(self, forecasts):
        """Keep (vote, probability or None, hit or None) for each."""
        with self.writing() as db:
            db["forecast"].insert_all(({"vote": v, "probability": p, "hit": None if hit is None else int(hit), "created": now()} for v, p, hit in forecasts),
                                      ignore=True)

    def forecasts(self, last):
        """(hits, calls) among the newest `last` votes for A or B that had a forecast."""
        row = self.row("select coalesce(sum(hit), 0) as hits, count(*) as calls from "
                       "(select hit from forecast where hit is not null order by vote desc limit ?)", last)
        return row["hits"], row["calls"]

    @staticmethod
    def _decoded(rows):
        for row in rows:
            for key in ("prompt", "left_ids", "right_ids", "completion"):
                if key in row:
                    row[key] = json.loads(row[key] or "[]")
        return rows

    def new_votes(self):
        """Usable votes that no round has seen yet."""
        return self.row(
            f"""select count(*) as n from vote v join duel d on d.id = v.duel join conversation c on c.id = d.conversation
                join annotator a on a.id = v.annotator where v.superseded_by is null and v.choice != 'skip' and {self.USABLE}
                and v.id > coalesce((select max(last_vote) from round), 0)""")["n"]

    # -- rounds

    def request_round(self):
        """Ask for a round now. Returns the active round's id: the new one, or the one that is already asked for or running."""
        with self.writing() as db:
            active = db.execute("select id from round where state in ('requested', 'running')").fetchone()
            return active[0] if active else db["round"].insert({"state": "requested", "created": now()}).last_pk

    def take_round(self, owner, *, lease_seconds, auto_votes=None, config=None, seed=0):
        """Take the lease of a round for `owner`: a running one whose heartbeat has lapsed, a requested one, or, where there are
        `auto_votes` new votes, a new one. Returns the round's row, or None when there is nothing to do."""
        with self.writing() as db:
            row = next(db.query("select * from round where state in ('requested', 'running')"), None)
            if row is None and auto_votes is not None and self.new_votes() >= auto_votes:
                row = db["round"].get(db["round"].insert({"state": "requested", "created": now()}).last_pk)
            if row is None or (row["state"] == "running" and row["owner"] != owner and time.time() - row["heartbeat"] < lease_seconds):
                return None
            change = {"state": "running", "owner": owner, "heartbeat": time.time(), "attempts": row["attempts"] + 1}
            if row["state"] == "requested":
                last = db.execute("select coalesce(max(id), 0) from vote").fetchone()[0]
                change |= {"phase": "collect", "started": now(), "config": json.dumps(config or {}), "seed": seed, "last_vote": last}
            db["round"].update(row["id"], change)
        return self.round(row["id"])

    def round(self, round_id):
        """A round's row, its metrics and config decoded."""
        row = self.row("select * from round where id = ?", round_id)
        return row and {**row, "metrics": json.loads(row["metrics"]), "config": json.loads(row["config"] or "{}")}

    def last_round(self):
        row = self.row("select id from round order by id desc limit 1")
        return row and self.round(row["id"])

    def update_round(self, round_id, owner, metrics=None, **columns):
        """Change a running round and renew its lease; `metrics` are merged into what it has. LeaseLost when `owner` no longer holds it."""
        with self.writing() as db:
            self._held(db, round_id, owner)
            if metrics:
                columns["metrics"] = json.dumps({**json.loads(db["round"].get(round_id)["metrics"]), **metrics})
            db["round"].update(round_id, {**columns, "heartbeat": time.time()})

    def end_round(self, round_id, owner, state, reason=None):
        self.update_round(round_id, owner, state=state, reason=reason, ended=now())

    def release_round(self, round_id, owner):
        """Give the lease up without ending the round, so that the next worker goes on at once. That is no failed attempt."""
        with self.writing() as db:
            db.execute("update round set heartbeat = 0, attempts = attempts - 1 where id = ? and owner = ? and state = 'running'", [round_id, owner])

    def _held(self, db, round_id, owner):
        try:
            row = db["round"].get(round_id)
        except NotFoundError:
            raise LeaseLost(f"round {round_id} does not exist") from None
        if row["owner"] != owner or row["state"] != "running":
            raise LeaseLost(f"round {round_id} is {row['state']}, held by {row['owner']}, not by {owner}")

    def use_votes(self, round_id, uses):
        """Record which votes a round used, as (vote, heldout) pairs."""
        with self.writing() as db:
            db["vote_use"].insert_all(({"round": round_id, "vote": v, "heldout": int(h)} for v, h in uses), replace=True)

    def add_metrics(self, round_id, step, values):
        """Append one point to each named curve of a round; a repeated step (after a resume) replaces its point."""
        with self.writing() as db:
            db["metric"].insert_all(({"round": round_id, "step": step, "name": k, "value": v} for k, v in values.items()), replace=True)

    def metrics(self, round_id):
        """The curves of a round: {name: [(step, value), ...]}."""
        curves = {}
        for row in self.rows("select name, step, value from metric where round = ? order by name, step", round_id):
            curves.setdefault(row["name"], []).append((row["step"], row["value"]))
        return curves

    # -- policies

    def live_policy(self):
        return self.row("select * from policy where status = 'live'")

    def policy(self, version):
        return self.row("select * from policy where version = ?", version)

    def round_policy(self, round_id):
        """The version that a round made, or None."""
        return self.row("select * from policy where round = ?", round_id)

    def add_policy(self, round_id, owner, parent):
        """Reserve the next version number for a round; the number is never used again. Repeating it for the same round gives the same one."""
        with self.writing() as db:
            self._held(db, round_id, owner)
            row = db.execute("select version from policy where round = ?", [round_id]).fetchone()
            if row:
                return row[0]
            version = db.execute("select max(version) + 1 from policy").fetchone()[0]
            db["policy"].insert({"version": version, "parent": parent, "status": "candidate", "round": round_id, "created": now()})
            return version

    def publish(self, round_id, owner, version, path, sha256, report):
        """One transaction: the lease is still held, the version is complete, it becomes live, the one before it retires, the round ends."""
        with self.writing() as db:
            self._held(db, round_id, owner)
            db["policy"].update(version, {"path": str(path), "sha256": sha256, "gate_report": json.dumps(report)})
            self._make_live(db, version, "retired")
            db["round"].update(round_id, {"state": "published", "phase": "publish", "ended": now()})

    def refuse(self, round_id, owner, version, path, sha256, report, reason):
        """The gate said no: the version is kept, marked rejected, and the round ends with the reason."""
        with self.writing() as db:
            self._held(db, round_id, owner)
            db["policy"].update(version, {"status": "rejected", "path": str(path), "sha256": sha256,
                                          "gate_report": json.dumps(report), "reason": reason})
            db["round"].update(round_id, {"state": "refused", "reason": reason, "ended": now()})

    def reject_live(self, version, reason, fallback):
        """The server could not load the live version: mark it rejected with the reason and make `fallback` live again."""
        with self.writing() as db:
            if db["policy"].get(version)["status"] == "live":
                self._make_live(db, fallback, "rejected")
                db["policy"].update(version, {"reason": reason})

    def quarantined(self, version, sha256):
        """The earlier version with the same weights that a server has rejected, or None. One that the gate refused may come again."""
        return self.row("""select p.version, p.reason from policy p join round r on r.id = p.round
                           where p.sha256 = ? and p.version != ? and p.status = 'rejected' and r.state = 'published'""", sha256, version)

    def roll_back(self, version):
        """Make an older version live again; the one that was live is marked rolled back."""
        with self.writing() as db:
            if db["policy"].get(version)["status"] == "rejected":
                raise StoreError(f"Version v{version} was rejected and cannot go live.")
            self._make_live(db, version, "rolled_back")

    @staticmethod
    def _make_live(db, version, old_status):
        db.execute("update policy set status = ? where status = 'live' and version != ?", [old_status, version])
        db["policy"].update(version, {"status": "live"})
