"""Self-hosted export of a person's data: one request, one Dagster run, one encrypted and provable file."""

__version__ = "0.1.0"
