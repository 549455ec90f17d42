"""The logs that other tools write: files to rows, and one small reader for each shape of a row."""
