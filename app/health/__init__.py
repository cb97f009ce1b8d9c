"""Whether this deployment works: readiness, the doctor, the health check of a container, and metrics.

The ways in are `readiness`, `doctor`, `checks` and `metrics`; the rules behind them are in
`core.findings`. A check reads and reports: it must not repair anything, and a check that hangs must not
delay the others.
"""
