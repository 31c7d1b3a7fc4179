"""SOCKS without I/O: what a client asked for, and which bytes answer it.

``server`` is one client's conversation, SOCKS 4, 4a and 5; ``replies`` holds the reply codes and
turns the reason why an SSH server could not open a channel into the code that tells the truth.
"""
