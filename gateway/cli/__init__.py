"""The command line: reads arguments, files and environment, then hands values over."""
