"""The operator's side of the learner: a JSON API, and pages that are views of it."""
