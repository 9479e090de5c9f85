-- One file a run. Batches are the only rows of the plan: no row per device, no stored client token.
-- A batch's state is derived: its outcome where it has one, else `sent` where a claim covers it,
-- else `planned`. That is what lets a claim of a thousand batches be one row.

CREATE TABLE run (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    plan          TEXT    NOT NULL,            -- JSON of checkpoint.base.Plan; binds the file to an intent
    next_number   INTEGER NOT NULL,            -- batch numbers are never reused, not even after an undone split
    epoch         INTEGER NOT NULL DEFAULT 0,  -- fences a holder that was taken over: every write checks it
    holder        TEXT,                        -- JSON of lease.Holder while leased, NULL after a clean end
    heartbeat_at  REAL    NOT NULL DEFAULT 0,  -- Unix seconds of the holder's last write
    claims        INTEGER NOT NULL DEFAULT 0,  -- commits so far, once of claims alone: the registry has the same count
    mark          INTEGER NOT NULL DEFAULT 0,  -- the highest batch number ever claimed
    account       TEXT,                        -- learnt from the first task ARN, enforced from then on
    learned_rate  REAL,                        -- calls per second the service last sustained
    finished_at   REAL,
    exit_code     INTEGER,
    pulse         TEXT                         -- JSON of checkpoint.base.Pulse: how the last process fares or fared
) STRICT;

CREATE TABLE lane (
    lane    INTEGER PRIMARY KEY,
    region  TEXT NOT NULL,
    account TEXT
) STRICT;

CREATE TABLE batch (
    number  INTEGER PRIMARY KEY,
    lane    INTEGER NOT NULL,
    wave    INTEGER NOT NULL,
    parent  INTEGER,                           -- the batch it was cut from
    fresh   INTEGER NOT NULL DEFAULT 1,        -- 1: its devices were never on the wire (counts against --limit)
    size    INTEGER NOT NULL CHECK (size BETWEEN 1 AND 10),
    targets TEXT    NOT NULL,                  -- ids in ascending order, one space between (ids hold no white space)
    removed INTEGER NOT NULL DEFAULT 0         -- 1: holds a device that was taken out of the manifest
) STRICT;

CREATE TABLE claim (
    first INTEGER NOT NULL,                    -- batches first..last may have been sent
    last  INTEGER NOT NULL,
    at    REAL    NOT NULL,                    -- Unix seconds; claiming again never renews an older claim
    epoch INTEGER NOT NULL
) STRICT;

CREATE TABLE outcome (
    batch         INTEGER PRIMARY KEY,
    state         TEXT    NOT NULL CHECK (state IN ('in_doubt', 'accepted', 'rejected', 'split', 'cancelled')),
    devices       INTEGER NOT NULL,
    attempts      INTEGER NOT NULL,
    first_sent_at REAL,
    settled_at    REAL    NOT NULL,
    task_id       TEXT,
    task_arn      TEXT,
    code          TEXT,
    message       TEXT,
    held          INTEGER,                     -- in doubt: NULL may be resent; 0 only a reconcile may; n not in epoch n
    CHECK ((state = 'accepted') = (task_id IS NOT NULL)),
    CHECK (state <> 'in_doubt' OR first_sent_at IS NOT NULL)
) STRICT;

CREATE INDEX outcome_in_doubt ON outcome (batch) WHERE state = 'in_doubt';
