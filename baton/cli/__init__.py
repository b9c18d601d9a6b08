"""The command line: `baton up`, `generate`, `status`, `config` and `demo`."""
