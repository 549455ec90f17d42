"""Engines: where chat models lie in memory and read for causal students. A file for each way."""
