"""The ledger of outputs: an object store with files, and beside them the manifest that commits them.

The way in is `store.Storage`, for a local folder and for a bucket alike. An error of the storage library
must not leave this package, and nothing here knows of Redis records, jobs or handlers; only `identity`
compares the storage with Redis.
"""
