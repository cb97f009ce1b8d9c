"""`python -m app.cli`, which is how `outkeep up` starts its receiver."""

from app.cli import main

main()
