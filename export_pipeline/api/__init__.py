"""The REST API: routes, schemas, problems. The rules are `intake`'s, the table of who may what is `identity`'s."""
