"""The shapes that a record may have, a file each, and what they share."""
