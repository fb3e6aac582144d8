"""Formats: each frames collected parts into the delivered file, and reads a delivered file back to check it."""
