"""`make bench-qos` and `make soak-qos`: admission under load."""
