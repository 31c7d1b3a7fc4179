"""Who may do what: pure functions and tables, asked at every channel open."""
