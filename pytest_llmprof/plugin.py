"""pytest hooks: wiring only."""
