"""The demonstration: an invented support desk, its traffic and its scripted teacher."""
