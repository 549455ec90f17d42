-- What each gateway said to serve, one row for each change. A record of what happened: nothing
-- is decided by it, and a rebuilt database does without.
CREATE TABLE swaps (
    gateway TEXT, task TEXT, reported_at TIMESTAMP,
    version TEXT NOT NULL,       -- '' = no student: the teacher answers
    problem TEXT NOT NULL,       -- why what is published is not served; '' = it is
    PRIMARY KEY (gateway, task, reported_at)
);
