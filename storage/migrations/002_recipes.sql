-- A student may read with a chat model instead of an encoder.
ALTER TABLE students RENAME COLUMN encoder TO base;
