"""Files, text and names that somebody else made: looked at before they are used."""
