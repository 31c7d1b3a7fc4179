"""The parts of `gateway serve`: one link, its channels, listeners and sessions, and its limits."""
