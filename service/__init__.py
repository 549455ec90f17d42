"""The shell: everything with a thread, a socket, a clock or a secret."""
