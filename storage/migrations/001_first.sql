-- Times are UTC without zone. Text ids come from the source, so every insert can be repeated.

CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO meta VALUES ('application', 'flywheel');

-- One row: grows with each committed transaction and is compared with a synced side file.
CREATE TABLE commits (count BIGINT NOT NULL);
INSERT INTO commits VALUES (0);

-- Where ingest goes on. Written in the same transaction as what the records meant.
CREATE TABLE offsets (
    topic TEXT, partition INTEGER, next_offset BIGINT NOT NULL, identity TEXT NOT NULL,
    updated_at TIMESTAMP NOT NULL,
    PRIMARY KEY (topic, partition)
);

CREATE TABLE gaps (
    topic TEXT NOT NULL, partition INTEGER NOT NULL, first BIGINT NOT NULL, last BIGINT NOT NULL,
    noticed_at TIMESTAMP NOT NULL
);

-- Sums over all events, chosen or not: what the unbiased estimates are made from.
-- version '' = no student assessed the event; task '' = no task claims it.
CREATE TABLE traffic (
    minute TIMESTAMP, task TEXT, version TEXT, segment TEXT,
    events BIGINT NOT NULL,
    assessed BIGINT NOT NULL,        -- events with a student's answer
    served BIGINT NOT NULL,          -- of those, answered by the student
    teacher_served BIGINT NOT NULL,  -- answered by the teacher (pass-through and escalated)
    sum_f DOUBLE NOT NULL,           -- predicted agreement over the assessed
    sum_f2 DOUBLE NOT NULL,
    served_sum_f DOUBLE NOT NULL,
    served_sum_f2 DOUBLE NOT NULL,
    histogram BIGINT[] NOT NULL,     -- confidences of the assessed, by CONFIDENCE_EDGES
    PRIMARY KEY (minute, task, version, segment)
);

-- Near-duplicate groups. The side is decided once, by the first member, for ever.
CREATE TABLE groups (
    group_id TEXT PRIMARY KEY, task TEXT NOT NULL, side TEXT NOT NULL,
    text TEXT NOT NULL,          -- of the first member: what newcomers are compared with
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE samples (
    event_id TEXT PRIMARY KEY,
    task TEXT NOT NULL,
    occurred_at TIMESTAMP NOT NULL,
    sampled_at TIMESTAMP NOT NULL,
    messages TEXT NOT NULL,      -- JSON
    text TEXT NOT NULL,          -- what the classifier reads
    reason TEXT NOT NULL,
    audit_pi DOUBLE, held_out_pi DOUBLE, learning_pi DOUBLE,
    policy_version TEXT NOT NULL,
    group_id TEXT NOT NULL,
    side TEXT NOT NULL,
    segment TEXT NOT NULL,
    served_by TEXT NOT NULL,
    student_version TEXT, student_label TEXT, confidence DOUBLE, failure_probability DOUBLE,
    user_key TEXT,
    attributes TEXT NOT NULL,    -- JSON
    topic TEXT NOT NULL, partition INTEGER NOT NULL, source_offset BIGINT NOT NULL,
    status TEXT NOT NULL,        -- pending -> labelled | failed | held (outcome unknown) | expired
    failure TEXT
);
CREATE INDEX samples_by_status ON samples (status);

CREATE TABLE labels (
    event_id TEXT, source TEXT,  -- bought | given | correction
    task TEXT NOT NULL,
    label TEXT NOT NULL, weight DOUBLE NOT NULL, votes INTEGER NOT NULL,
    teacher_model TEXT NOT NULL, prompt_version TEXT NOT NULL, terms TEXT NOT NULL,
    prompt_tokens BIGINT NOT NULL, completion_tokens BIGINT NOT NULL, cost DOUBLE NOT NULL,
    ledger_key TEXT,
    labelled_at TIMESTAMP NOT NULL,
    PRIMARY KEY (event_id, source)
);

-- A person's word counts more than a teacher's.
CREATE VIEW effective_labels AS
SELECT * FROM labels
QUALIFY row_number() OVER (
    PARTITION BY event_id
    ORDER BY CASE source WHEN 'correction' THEN 0 WHEN 'bought' THEN 1 ELSE 2 END
) = 1;

CREATE TABLE dead_letters (
    topic TEXT, partition INTEGER, source_offset BIGINT,
    payload BLOB, headers TEXT NOT NULL, reason TEXT NOT NULL,
    received_at TIMESTAMP NOT NULL, replayed_at TIMESTAMP,
    PRIMARY KEY (topic, partition, source_offset)
);

CREATE TABLE datasets (
    digest TEXT PRIMARY KEY, task TEXT NOT NULL, parent TEXT,
    labels INTEGER NOT NULL, examples INTEGER NOT NULL, held_out INTEGER NOT NULL,
    cut_off TIMESTAMP NOT NULL, created_at TIMESTAMP NOT NULL
);

CREATE TABLE training_runs (
    run_id TEXT PRIMARY KEY, task TEXT NOT NULL, dataset TEXT NOT NULL, recipe TEXT NOT NULL,
    reason TEXT NOT NULL,
    started_at TIMESTAMP NOT NULL, ended_at TIMESTAMP,
    status TEXT NOT NULL,        -- running -> succeeded | failed
    failure TEXT, student TEXT
);

CREATE TABLE students (
    task TEXT, number INTEGER, digest TEXT NOT NULL,
    dataset TEXT NOT NULL, encoder TEXT NOT NULL, recipe TEXT NOT NULL,
    labels_trained INTEGER NOT NULL, labels_bought INTEGER NOT NULL,
    trained_at TIMESTAMP NOT NULL, train_seconds DOUBLE NOT NULL, training TEXT NOT NULL,
    PRIMARY KEY (task, number), UNIQUE (task, digest)
);

CREATE TABLE evaluations (
    task TEXT, digest TEXT,      -- the candidate
    attempt INTEGER,             -- counted since the last approval
    champion TEXT, snapshot TEXT NOT NULL, items INTEGER NOT NULL,
    report TEXT NOT NULL,        -- content hash of the report artifact
    verdict TEXT NOT NULL, promotable BOOLEAN NOT NULL,
    compared BOOLEAN NOT NULL,   -- whether it used its items up: only then is it an attempt
    threshold DOUBLE, coverage DOUBLE NOT NULL,
    evaluated_at TIMESTAMP NOT NULL,
    PRIMARY KEY (task, digest, evaluated_at)
);

CREATE TABLE decisions (
    sequence INTEGER PRIMARY KEY,
    task TEXT NOT NULL, action TEXT NOT NULL, student TEXT NOT NULL, report TEXT,
    operator TEXT NOT NULL, reason TEXT NOT NULL, decided_at TIMESTAMP NOT NULL,
    previous_digest TEXT NOT NULL, digest TEXT NOT NULL
);

CREATE TABLE ticks (
    job TEXT, scheduled_at TIMESTAMP,
    started_at TIMESTAMP NOT NULL, ended_at TIMESTAMP,
    outcome TEXT NOT NULL,       -- running | done | nothing | failed | paused | missed
    detail TEXT NOT NULL,
    PRIMARY KEY (job, scheduled_at)
);

CREATE TABLE pauses (job TEXT PRIMARY KEY, paused_by TEXT NOT NULL, paused_at TIMESTAMP NOT NULL);

CREATE TABLE leases (
    lease_id TEXT PRIMARY KEY, gateway TEXT NOT NULL, day DATE NOT NULL,
    granted_at TIMESTAMP NOT NULL, expires_at TIMESTAMP NOT NULL,
    calls BIGINT NOT NULL, money DOUBLE NOT NULL,
    spent_calls BIGINT NOT NULL, spent_money DOUBLE NOT NULL,
    settled BOOLEAN NOT NULL
);

-- What the watch job found, about once a minute: the history behind the charts.
CREATE TABLE estimates (
    task TEXT, estimated_at TIMESTAMP,
    coverage DOUBLE, coverage_low DOUBLE, coverage_high DOUBLE,
    agreement DOUBLE, agreement_low DOUBLE, agreement_high DOUBLE,
    spend DOUBLE NOT NULL,
    PRIMARY KEY (task, estimated_at)
);
