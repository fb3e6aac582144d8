"""The Dagster room: the only one that imports dagster. Ops are doors to `export_run`, nothing more."""
