"""One run as a page, tables and files."""
