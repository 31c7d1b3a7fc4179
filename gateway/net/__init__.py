"""trio and sockets: carriers, links, channels as streams, relays, dialling and listening.

trio's and the operating system's errors stop in this folder: what leaves it is a `GatewayError`.
"""
