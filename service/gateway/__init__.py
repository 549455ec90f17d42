"""The data plane: answers the app, and nothing that it needs can be blocked by the learner."""
