"""How the check "not a head CT" is fitted."""
