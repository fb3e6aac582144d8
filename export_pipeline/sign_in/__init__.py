"""How people prove who they are: our own tokens, those of an identity provider, and sessions of browsers."""
