"""SSH without I/O: no trio, no sockets, no clock, no logging. Time and randomness are arguments."""
