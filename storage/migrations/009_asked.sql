-- What the app asked for beside its messages, as JSON: the teacher is asked with it.
DROP INDEX samples_by_status;
ALTER TABLE samples ADD COLUMN asked TEXT DEFAULT '{}';
CREATE INDEX samples_by_status ON samples (status);

-- Requests that no student may answer: counted by reason, in no other sum.
CREATE TABLE traffic_past (
    minute TIMESTAMP NOT NULL,
    task TEXT NOT NULL,
    reason TEXT NOT NULL,
    requests BIGINT NOT NULL
);
