"""Our own tables: the only room that speaks SQL to them."""
