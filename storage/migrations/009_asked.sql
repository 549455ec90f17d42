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

-- What the answers that are labels look like to whoever parses them: a student's must look alike.
CREATE TABLE answer_shapes (
    day DATE NOT NULL,
    task TEXT NOT NULL,
    shape TEXT NOT NULL,
    answers BIGINT NOT NULL
);

-- Imported events that were read: the same import twice counts once, in every sum.
CREATE TABLE imported (
    event_id TEXT NOT NULL,
    read_at TIMESTAMP NOT NULL
);
