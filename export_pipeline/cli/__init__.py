"""The command `export-pipeline`. Every command has `--json`, and ends with one clear line on an error."""

from export_pipeline.cli.app import main

__all__ = ["main"]
