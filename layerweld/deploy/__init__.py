"""The commands that organisations run a federation with: Flower's programs, set up and watched."""
