"""The way to a server: its first connection, the hops in between, and the login to each host."""
