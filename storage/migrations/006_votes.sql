-- What the teacher said when it was asked the same question again: how far it agrees with itself.
CREATE TABLE votes (
    event_id TEXT,
    repeat INTEGER,              -- 1: drawn blindly | 2: because a student doubted the first answer
    task TEXT NOT NULL,
    first TEXT NOT NULL,         -- the teacher's label that the answer is compared with
    label TEXT,                  -- none: the answer was no label of the task
    prompt_version TEXT NOT NULL,
    tokens BIGINT NOT NULL, cost DOUBLE NOT NULL, ledger_key TEXT NOT NULL,
    voted_at TIMESTAMP NOT NULL,
    PRIMARY KEY (event_id, repeat)
);
