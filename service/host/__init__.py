"""What makes a process of ours one: its lock and port, its memory, its log, its life signs."""
