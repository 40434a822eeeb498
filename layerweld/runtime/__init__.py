"""What a running program needs from its machine: disk, progress, terminal, incidents, run state."""
