"""Everything that we ask of Replicate's API, and the guarded HTTP that every outgoing request uses.

The ways in are `client.Api` for reading, `creation` for creating predictions, and `guard` for HTTP
sessions. An address must not be connected to before it was checked, and answers stay raw JSON: typed models
refuse real objects.
"""
