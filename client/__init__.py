"""Flower's ClientApp: a site's data, training and replies. `docs/architecture.md` has the parts."""
