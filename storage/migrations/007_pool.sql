-- Held-out events that are kept without asking for a label: with which probability, and no longer
-- any when they have left the pool. Rows from before are in none.
DROP INDEX samples_by_status;
ALTER TABLE samples ADD COLUMN pool_pi DOUBLE;
CREATE INDEX samples_by_status ON samples (status);
