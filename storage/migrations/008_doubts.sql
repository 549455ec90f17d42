-- Training labels that the other examples speak against, as the last training of a task found them.
CREATE TABLE doubts (
    event_id TEXT NOT NULL,
    task TEXT NOT NULL,
    label TEXT NOT NULL,
    likelier TEXT NOT NULL,      -- the label that the other examples speak for
    margin DOUBLE NOT NULL,      -- by how much of a probability
    doubted_at TIMESTAMP NOT NULL
);
