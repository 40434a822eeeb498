"""Flower's ServerApp: handshake, journal and output. `docs/architecture.md` has the parts."""
