"""What several stages share of reading traces: events, phases, idle time, rows and tables."""
