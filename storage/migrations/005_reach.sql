-- Where a prompt lies, seen from the student's training data, and why an answer is not promised.
-- Rows from before know neither: nothing in them was forced or far, as far as anybody can tell.
DROP INDEX samples_by_status;
ALTER TABLE samples ADD COLUMN unsure TEXT DEFAULT '';
ALTER TABLE samples ADD COLUMN reach TEXT;
CREATE INDEX samples_by_status ON samples (status);

ALTER TABLE traffic ADD COLUMN forced BIGINT DEFAULT 0;
ALTER TABLE traffic ADD COLUMN forced_sum_f DOUBLE DEFAULT 0;
ALTER TABLE traffic ADD COLUMN novel BIGINT DEFAULT 0;
ALTER TABLE traffic ADD COLUMN far_histogram INTEGER[];  -- none: nothing was far

-- Thresholds above the approved one: what the traffic or its audits called for, until they end.
CREATE TABLE guards (
    task TEXT, student TEXT,
    kind TEXT,                   -- mix | audits | novel (which leaves the threshold as it is)
    raised_at TIMESTAMP,
    since TIMESTAMP NOT NULL,    -- when what it is about began
    threshold DOUBLE,            -- none: nothing is trusted
    reason TEXT NOT NULL,
    changed_at TIMESTAMP NOT NULL,
    ended_at TIMESTAMP,
    PRIMARY KEY (task, student, kind, raised_at)
);
