-- With which probability a held-out event is kept without asking for a label. None when it has left
-- the pool, and in rows from before.
DROP INDEX samples_by_status;
ALTER TABLE samples ADD COLUMN pool_pi DOUBLE;
CREATE INDEX samples_by_status ON samples (status);
