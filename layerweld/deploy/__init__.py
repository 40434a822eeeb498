"""The commands with which organisations run a federation: Flower's programs, set up and watched."""
