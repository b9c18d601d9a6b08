"""Generated from protos/baton/v1: never edited; `make proto-check` proves it fresh."""
