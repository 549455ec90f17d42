"""Topics that arrive one after the other: what the student answers wrongly alone, how long."""
