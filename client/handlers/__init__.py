"""What a site does for each message."""
