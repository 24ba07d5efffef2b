"""What several tests need: engines, traffic, tables, and rules written a second time."""
