"""The command lines: thin, and the only place that prints."""
