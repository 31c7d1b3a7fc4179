"""What ssh(1) calls forwarding: listeners on either side, and what is connected to on the other."""
