"""Tests mirror the package: unit (no server), integration (real PostgreSQL), acceptance (row to file), faults."""
