"""What each setting does, measured: the default against another value on the same workload."""
