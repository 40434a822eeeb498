"""Settings of a run and of its sites: typed, frozen, checked once."""
