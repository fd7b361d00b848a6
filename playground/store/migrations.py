"""The store's schema as numbered migrations, each applied once and recorded by sqlite-utils.

Only `database.py` runs them.
"""

import json

from sqlite_utils import Database, Migrations

from playground.settings import RENAMED

migrations = Migrations("nudge")


@migrations(name="0001_initial")
def initial(db: Database) -> None:
    for statement in SCHEMA.split(";\n\n"):
        db.execute(statement)


@migrations(name="0002_forecast")
def forecast(db: Database) -> None:
    """What a reward model, fitted on the votes before, said of a vote: the probability of the choice, and whether it
    named the winner.
    """
    db.execute(
        "create table forecast (vote integer primary key references vote(id), probability real, hit integer, created "
        "text not null)"
    )


@migrations(name="0003_gestures")
def gestures(db: Database) -> None:
    """Undo, regenerate, chats to reopen and to share, sign-ins, and commands of an admin to a round (`wish`)."""
    for column in ("name text", "signed_in_until real"):
        db.execute(f"alter table annotator add column {column}")
    for column in ("opened text", "shown_duel integer references duel(id)", "sampling text", "share_token text"):
        db.execute(f"alter table conversation add column {column}")
    db.execute("create unique index conversation_share_token on conversation (share_token)")
    db.execute("alter table round add column wish text")
    db.execute(
        "create table override (name text primary key, value text not null, annotator integer references "
        "annotator(id), created text not null)"
    )
    db.execute("update conversation set opened = created")
    # for the queries of each gesture, which without these take longer with every vote
    for table, columns in (
        ("vote", "annotator"),
        ("vote_use", "vote, heldout"),
        ("duel", "user_message"),
        ("duel", "left_generation"),
        ("duel", "right_generation"),
        ("rating", "message"),
        ("demonstration", "message"),
        ("policy", "round"),
    ):
        db.execute(f"create index {table}_{columns.split(',')[0]} on {table} ({columns})")
    # what a page showed before: the newest pair with texts
    db.execute("""update conversation set shown_duel = (
                    select max(d.id) from duel d where d.conversation = conversation.id and 2 = (
                      select count(*) from generation g join message m on m.id = g.message
                      where g.id in (d.left_generation, d.right_generation) and m.status != 'error'))""")


@migrations(name="0004_beat")
def beat(db: Database) -> None:
    """Counters instead of the wall clock, which may be set back: of a round's lease, and of the opening of chats.

    Also the hash of the weights of a version that a server rejected, since `sha256` is now that of the whole version.
    """
    # goes up each time the round's worker shows that it is alive
    db.execute("alter table round add column beat integer not null default 0")
    # a person's open chat is the one with the highest value
    db.execute("alter table conversation add column opened_as integer not null default 0")
    db.execute("""update conversation set opened_as = ordered.n
                  from (select id, row_number() over (order by opened, id) as n from conversation) as ordered
                  where ordered.id = conversation.id""")
    db.execute("create index conversation_opened_as on conversation (opened_as)")
    db.execute("alter table policy add column weights_sha256 text")
    db.execute("update policy set weights_sha256 = sha256 where status = 'rejected'")


@migrations(name="0005_early_votes")
def early_votes(db: Database) -> None:
    """Early votes and pairs of equal replies.

    `left_cut` and `right_cut`: how many tokens each side had when the pair was picked before the end; training compares
    these. `same`: both replies are the same text. Nobody can vote on such a pair, so it does not count, and the
    conversation goes on from the left reply.
    """
    for column in ("left_cut integer", "right_cut integer", "same integer not null default 0"):
        db.execute(f"alter table duel add column {column}")
    db.execute("""update duel set same = 1 where 1 = (
                    select count(distinct m.text) from generation g join message m on m.id = g.message
                    where g.id in (duel.left_generation, duel.right_generation)) and not exists (
                    select 1 from generation g join message m on m.id = g.message
                    where g.id in (duel.left_generation, duel.right_generation)
                    and (m.status in ('error', 'streaming') or m.text = ''))""")
    db.execute("""update conversation set tail = (select g.message from duel d
                   join generation g on g.id = d.left_generation where d.id = shown_duel)
                  where exists (select 1 from duel d where d.id = shown_duel and d.same
                    and not exists (select 1 from vote v where v.duel = d.id and v.superseded_by is null))""")


@migrations(name="0006_erasure")
def erasure(db: Database) -> None:
    """What people take back, until nothing of it is left in any file; and which chats a round has read.

    Chats that were deleted before are erased too.
    """
    db.execute("""create table erasure (
                    id integer primary key, annotator integer not null references annotator(id),
                    conversation integer references conversation(id),  -- null: all chats of the annotator
                    requested text not null, done text)""")
    db.execute("create index erasure_unfinished on erasure (id) where done is null")
    db.execute("""create table round_conversation (
                    round integer not null references round(id), conversation integer not null references
                    conversation(id),
                    primary key (round, conversation)) without rowid""")
    db.execute("create index round_conversation_conversation on round_conversation (conversation)")
    db.execute("create index generation_prompt on generation (prompt)")
    db.execute("""insert into round_conversation (round, conversation)
                  select distinct u.round, d.conversation from vote_use u join vote v on v.id = u.vote
                  join duel d on d.id = v.duel""")
    db.execute("""insert into erasure (annotator, conversation, requested)
                  select annotator, id, strftime('%Y-%m-%dT%H:%M:%fZ') from conversation where deleted is not null""")


@migrations(name="0007_report")
def report(db: Database) -> None:
    """Remove the samples from a policy's report: they are people's words and outlived the deletion of a chat."""
    db.execute("update policy set gate_report = json_remove(gate_report, '$.samples') where json_valid(gate_report)")


@migrations(name="0008_settings")
def settings(db: Database) -> None:
    """Settings have groups: what admins changed, and what rounds ran with, gets the current names."""
    for old, new in RENAMED.items():
        db.execute("update or replace override set name = ? where name = ?", [new, old])
    for round_id, config in db.execute("select id, config from round where json_valid(config)").fetchall():
        renamed = {RENAMED.get(name, name): value for name, value in json.loads(config).items()}
        db.execute("update round set config = ? where id = ?", [json.dumps(renamed), round_id])


@migrations(name="0009_trial")
def trial(db: Database) -> None:
    """Versions on trial: compared with another version by people's votes, until one of the two stays."""
    db.execute("""create table trial (
                    version integer primary key references policy(version),
                    against integer not null references policy(version),
                    state text not null check (state in ('open', 'kept', 'undecided', 'rolled_back')),
                    after_vote integer not null,  -- the newest vote when it began
                    reason text, started text not null, ended text)""")


@migrations(name="0010_asked")
def asked(db: Database) -> None:
    """Whether a person asked for a round; it is 0 for rounds that began by themselves."""
    db.execute("alter table round add column asked integer not null default 0")


@migrations(name="0011_policy_event")
def policy_event(db: Database) -> None:
    """When each version became live or ceased to be, by whom and why; and versions that an admin has withdrawn.

    Of versions from before only what their rounds and trials tell is known.
    """
    db.execute("""create table policy_event (
                    id integer primary key,
                    version integer not null references policy(version),
                    what text not null check (
                      what in ('live', 'retired', 'refused', 'rejected', 'rolled_back', 'withdrawn')),
                    annotator integer references annotator(id),  -- null: no person did it
                    reason text, created text not null)""")
    db.execute("create index policy_event_version on policy_event (version)")
    # a version with a date here never becomes live again by itself
    db.execute("alter table policy add column withdrawn text")
    db.execute("""insert into policy_event (version, what, reason, created)
                  select version, what, reason, created from (
                    select version, 'live' as what, null as reason, created from policy where version = 0
                    union all
                    select p.version, 'live', null, r.ended from policy p join round r on r.id = p.round
                    where r.state = 'published' and r.ended is not null
                    union all
                    select p.version, 'refused', r.reason, r.ended from policy p join round r on r.id = p.round
                    where p.status = 'rejected' and r.state = 'refused' and r.ended is not null
                    union all
                    select version, 'rolled_back', reason, ended from trial
                    where state = 'rolled_back' and ended is not null)
                  order by created""")


@migrations(name="0012_data")
def data(db: Database) -> None:
    """Data from elsewhere, and votes that an admin leaves out of training.

    Imported rows have a table of their own: they are nobody's votes, so that no number of votes counts them, and they
    are texts, so that they stay of use when the base model changes.
    """
    db.execute("""create table imported (
                    id integer primary key,
                    sha256 text not null unique,  -- of what the row says; the same row is imported once
                    kind text not null check (kind in ('pair', 'demonstration', 'prompt')),
                    source text not null,  -- the name that the person who imported it gave to its file
                    weight real not null default 1,  -- of a pair, beside a vote's 1
                    record text not null,  -- the texts as JSON
                    created text not null)""")
    # hashes are as good as random: their first n are a sample that stays the same
    db.execute("create index imported_kind on imported (kind, sha256)")
    db.execute("create index imported_source on imported (source)")
    # when an admin left the vote out of training; null: it is in
    db.execute("alter table vote add column excluded text")


@migrations(name="0013_api_key")
def api_key(db: Database) -> None:
    """Keys by which other programs chat and vote for a person. `key_hash` is null once a key is revoked."""
    db.execute("""create table api_key (
                    id integer primary key,
                    annotator integer not null references annotator(id),
                    name text not null,  -- of the person; empty once it is erased
                    key_hash text unique,  -- sha256; the key itself is never stored
                    created text not null, revoked text)""")
    db.execute("create index api_key_annotator on api_key (annotator)")


@migrations(name="0014_edited")
def edited(db: Database) -> None:
    """An edited reply that is edited again keeps its row. A row with another id and time used to take its place, so
    that a file exported before brought the text back after its chat had been deleted.
    """
    # when the person edited the reply again; null: never
    db.execute("alter table demonstration add column edited text")


@migrations(name="0015_sign_in")
def sign_in(db: Database) -> None:
    """Users who sign in. A person has one annotator on every device, by the id in the users file, and a cookie for each
    sign-in.
    """
    # the user's id in the users file; null: a visitor, or somebody with keys alone
    db.execute("alter table annotator add column account text")
    db.execute("create unique index annotator_account on annotator (account)")
    db.execute("""create table sign_in (
                    token_hash text primary key,  -- sha256 of the cookie
                    annotator integer not null references annotator(id),
                    stamp text not null,  -- hash of the password's hash, with which the sign-in ends
                    used real not null,  -- when it was last used, in unix seconds
                    created text not null) without rowid""")
    db.execute("create index sign_in_annotator on sign_in (annotator)")


@migrations(name="0016_base")
def base(db: Database) -> None:
    """The base models that the app has run with, in that order. The newest reply's base was taken for the one that
    answers, so that after a start with another model the votes on the earlier one's replies counted as new.
    """
    db.execute("create table base (id integer primary key, base_hash text not null, model text not null, since text)")


@migrations(name="0017_dialogue")
def dialogue(db: Database) -> None:
    """Each request of another program is a chat of its own. Those that go on with one dialogue belong together: they
    were on both sides of a round's held-out split.
    """
    # the first chat of the dialogue that this one goes on with; null: it goes on with none
    db.execute("alter table conversation add column dialogue integer references conversation(id)")


@migrations(name="0018_features")
def features(db: Database) -> None:
    """The setting `reward.view` is called `reward.features`, where an admin set it and where a round ran with it."""
    db.execute("update or replace override set name = 'reward.features' where name = 'reward.view'")
    db.execute("""update round set config = json_remove(json_set(config, '$."reward.features"',
                    json_extract(config, '$."reward.view"')), '$."reward.view"')
                  where json_valid(config) and json_type(config, '$."reward.view"') is not null""")


@migrations(name="0019_queue")
def queue(db: Database) -> None:
    """Prompts that the owner wants judged, who has which of them, and pairs that a second person is shown again; people
    whom an admin leaves out of training.
    """
    db.execute("""create table queued_prompt (
                    id integer primary key,
                    sha256 text not null unique,  -- of its messages
                    place integer,  -- in the file; null: it is not in it any more
                    twice integer not null,  -- whether two people are to judge it
                    -- what its tasks say: free for a first person, in somebody's hands, judged once and free for a
                    -- second person, judged, skipped by too many
                    state text not null check (state in ('open', 'taken', 'again', 'done', 'aside')),
                    messages text not null,  -- as JSON; the last one is the prompt, the first may be a system prompt
                    created text not null)""")
    db.execute("create index queued_prompt_state on queued_prompt (state, place, twice)")
    db.execute("""create table queue_task (
                    id integer primary key,
                    prompt integer not null references queued_prompt(id),
                    annotator integer not null references annotator(id),
                    state text not null check (state in ('taken', 'done', 'skipped', 'left')),
                    conversation integer references conversation(id),  -- null until the prompt is sent
                    message integer references message(id),  -- the prompt as it was sent; a vote on its replies is it
                    repeats integer references duel(id),  -- the pair that is judged a second time; null: new replies
                    reason text,  -- why it was skipped
                    taken real not null)  -- in unix seconds""")
    db.execute("create index queue_task_prompt on queue_task (prompt)")
    db.execute("create index queue_task_annotator on queue_task (annotator, state)")
    db.execute("create index queue_task_message on queue_task (message)")
    db.execute("create index queue_task_conversation on queue_task (conversation)")
    # of each person one at a time
    db.execute("create unique index queue_task_taken on queue_task (annotator) where state = 'taken'")
    # the pair whose replies are shown again here, with sides swapped
    db.execute("alter table duel add column repeats integer references duel(id)")
    db.execute("create index duel_repeats on duel (repeats) where repeats is not null")
    # when an admin left the person out of training; null: they are in
    db.execute("alter table annotator add column left_out text")


@migrations(name="0021_origin")
def origin(db: Database) -> None:
    """Where imported rows come from that others publish: their licences ask to be told."""
    db.execute("""create table origin (
                    id integer primary key,
                    url text not null,  -- with the commit: it always means the same files
                    split text not null,
                    license text,  -- as the dataset's card names it
                    created text not null,
                    unique (url, split))""")
    db.execute("alter table imported add column origin integer references origin(id)")
    # a source is taken back with its origins; without it SQLite would read every imported text for that
    db.execute("create index imported_origin on imported (origin) where origin is not null")


@migrations(name="0022_provider")
def provider(db: Database) -> None:
    """People whom a provider signs in: it says again and again who they are and what they may."""
    # the role that the provider's last word gave; null: no provider signs this person in
    db.execute("alter table annotator add column provider_role text")
    # when it ends however much it is used, in unix seconds; null: once nobody uses it
    db.execute("alter table sign_in add column until real")


@migrations(name="0023_changed_vote")
def changed_vote(db: Database) -> None:
    """Where a vote that took the place of another one was given: how long its person looked at the pair is not how long
    a first vote takes.
    """
    # 'chat': while the chat showed the pair; 'list': in the list of one's own; null: it is the first one
    db.execute("alter table vote add column changed text check (changed in ('chat', 'list'))")
    # the earlier votes on a pair: those that were replaced, and those that were taken back (superseded by themselves)
    db.execute("create index vote_replaced on vote (duel) where superseded_by is not null")
    db.execute("""update vote set changed = 'chat' where id in (
                    select superseded_by from vote where superseded_by is not null)""")


SCHEMA = """
create table annotator (
    id integer primary key,
    token_hash text unique,          -- sha256 of the visitor's cookie; the cookie itself is never stored
    kind text not null check (kind in ('hf', 'local', 'anonymous', 'simulated')),
    role text not null default 'annotator' check (role in ('annotator', 'admin')),
    consent_version integer, consent_at text,
    allow_training integer not null default 1,
    banned integer not null default 0,
    created text not null
);

create table conversation (
    id integer primary key,
    annotator integer not null references annotator(id),
    tail integer references message(id),   -- last message that counts as history
    system_prompt text,
    created text not null,
    deleted text
);

create index conversation_annotator on conversation (annotator);

create table message (
    id integer primary key,
    conversation integer not null references conversation(id),
    parent integer references message(id),
    role text not null check (role in ('user', 'assistant')),
    text text not null,
    status text not null check (status in ('streaming', 'complete', 'stopped', 'error')),
    created text not null
);

create index message_conversation on message (conversation);

create table prompt (                 -- both candidates of a duel, and every retry, share one
    id integer primary key,
    sha256 text not null unique,
    token_ids text not null
);

create table generation (
    id integer primary key,
    message integer not null unique references message(id),
    prompt integer not null references prompt(id),
    policy integer not null references policy(version),
    base_model text not null, base_hash text not null, template_hash text not null,
    sampling text not null,
    seed integer not null,
    token_ids text, logprobs text,    -- completion, with the log-probability each token was drawn with
    finish_reason text check (finish_reason in ('end', 'length', 'stopped', 'error')),
    first_token_ms real, total_ms real
);

create table duel (
    id integer primary key,
    conversation integer not null references conversation(id),
    user_message integer not null references message(id),
    left_generation integer not null references generation(id),
    right_generation integer not null references generation(id),
    pairing text not null check (pairing in ('same_policy', 'champion_challenger', 'active')),
    probability real not null,        -- with which this pair was chosen
    created text not null
);

create index duel_conversation on duel (conversation);

create table vote (
    id integer primary key,
    duel integer not null references duel(id),
    annotator integer not null references annotator(id),
    choice text not null check (choice in ('a', 'b', 'tie', 'both_bad', 'skip')),   -- a is the left side
    continued_with integer references message(id),
    tags text, comment text,
    shown_at text, dwell_ms real,
    superseded_by integer references vote(id) deferrable initially deferred,
    created text not null
);

create unique index vote_current on vote (duel, annotator) where superseded_by is null;

create table rating (
    id integer primary key,
    message integer not null references message(id),
    annotator integer not null references annotator(id),
    thumb integer not null check (thumb in (-1, 1)),
    superseded_by integer references rating(id),
    created text not null
);

create table demonstration (
    id integer primary key,
    message integer not null references message(id),
    annotator integer not null references annotator(id),
    before text not null, after text not null,
    created text not null
);

create table policy (
    version integer primary key,
    parent integer references policy(version),
    status text not null check (status in ('candidate', 'live', 'retired', 'rejected', 'rolled_back')),
    path text, sha256 text,
    round integer references round(id),
    gate_report text, reason text,
    created text not null
);

create unique index policy_live on policy (status) where status = 'live';

create table round (
    id integer primary key,
    state text not null check (state in ('requested', 'running', 'published', 'refused', 'not_enough', 'failed')),
    phase text, step integer not null default 0, steps integer not null default 0,
    owner text, heartbeat real, attempts integer not null default 0,
    config text, seed integer, last_vote integer,
    metrics text not null default '{}',
    reason text,
    created text not null, started text, ended text
);

create unique index round_active on round (state) where state in ('requested', 'running');

create table metric (
    round integer not null references round(id),
    step integer not null, name text not null, value real,
    primary key (round, name, step)
) without rowid;

create table vote_use (
    round integer not null references round(id),
    vote integer not null references vote(id),
    heldout integer not null,
    primary key (round, vote)
) without rowid;

insert into policy (version, status, created) values (0, 'live', strftime('%Y-%m-%dT%H:%M:%fZ'))
""".strip()
