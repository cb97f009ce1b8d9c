"""What people and programs see of it: sign-in, catalog, JSON API, event stream and dashboard.

Nothing here stands in the way of a delivery: no middleware, no work at import. Reads go through the catalog
and the ledgers; changes are made by `app.maintain` and `app.replicate`, as the commands make them.
"""
