"""What a running program needs of its machine: disk, progress, terminal, incidents, run state."""
