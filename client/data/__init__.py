"""A site's samples: read, checked, tokenised."""
