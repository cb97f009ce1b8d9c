"""Rules only: no clock, environment, network, file, log or randomness is touched here."""
