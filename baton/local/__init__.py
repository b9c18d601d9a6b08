"""The whole mesh as child processes of one process, on one machine."""
