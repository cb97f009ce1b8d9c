"""The public side of the web process: from the socket to a verified delivery, and stored files over HTTP.

The way in is `endpoint`; `protocol` and `bodies` bound what a sender may take, `senders` decides whose word
it is. Nothing may be parsed before it is verified, and nothing is answered with 2xx before `accept` has
made it durable.
"""
