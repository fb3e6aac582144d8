"""Bytes at rest: keys, the age seal, and the store that holds sealed objects. Nothing unsealed passes through here."""
