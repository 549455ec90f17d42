"""The functional core: nouns and decisions, without clock, environment, socket or database."""
