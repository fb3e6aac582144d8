"""The parts of the embedded PostgreSQL; `export_pipeline.embedded` is its door."""
