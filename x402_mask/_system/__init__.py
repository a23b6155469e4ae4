"""What this machine and Python do under us: threads, typed text, missing packages."""
