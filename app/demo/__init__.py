"""The demonstration that `outkeep demo` gives."""
