"""Messages as values, and values as Flower records. No other package here knows Flower."""
