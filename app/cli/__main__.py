"""`python -m app.cli`, which is how `outkeep up` starts its receiver."""

from app.cli.root import main

main()
