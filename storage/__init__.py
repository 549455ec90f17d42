"""The adapter: SQL and files. Knows the nouns of `pipelines` and nothing of `service`."""

import os

# DuckDB's own allocator reads this once, when it is loaded. By itself it keeps for ten seconds what
# a query has freed: for a process that queries all the time that is for ever.
os.putenv("DUCKDB_JE_MALLOC_CONF", "narenas:2,dirty_decay_ms:200,muzzy_decay_ms:0")
