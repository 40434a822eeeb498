"""A comparison of methods as a page, tables and files."""
