"""How a lost database is put together again from what lies beside it and on the topic."""
