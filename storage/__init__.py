"""The adapter: SQL and files. Knows the nouns of `pipelines` and nothing of `service`."""
