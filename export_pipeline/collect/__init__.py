"""How rows leave the source: catalogue, snapshot, SQL composition, COPY stream. The only room that speaks SQL to it."""
